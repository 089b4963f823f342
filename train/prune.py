"""Prune the network of a run: `python -m train.prune --workdir runs/digits --out runs/digits-half --flops 0.5`.

Whole channels are removed, so that the network becomes smaller and faster. The folder that is made is a run: it is evaluated, predicts,
and is exported and published like any other. Accuracy drops when channels are removed; train the smaller network for a few epochs with the
config of the original run and --config.init_from=runs/digits-half, which takes the network from there.

A line says what is left of the multiply-adds and of the parameters, and how the metric on the validation split has changed.
"""

import pathlib
import sys
import warnings
from typing import Any

import dilax
from dilax.errors import one_line
from train import cli, convert
from train.build import build, load_trained
from train.config import CHANGES
from train.evaluate import check_data
from train.folder import read_run
from train.score import score

FLOPS, MULTIPLE = 0.5, 8


def prune(
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    flops: float | None = None,
    ratio: float | None = None,
    by: str = "magnitude",
    multiple_of: int = MULTIPLE,
    data_dir: str = "",
) -> str:
    """Write a run whose network has fewer channels than that of another.

    Args:
        workdir: Folder of the run.
        out: Folder of the new run, new or empty. It appears whole, or not at all.
        flops: Share of the multiply-adds that may remain; see `dilax.prune`, as for the next three.
        ratio: Instead, the share of its channels that each layer loses.
        by: Which channels are removed.
        multiple_of: What the numbers of channels that are left are multiples of.
        data_dir: Where the data is now, if it has moved since training.

    Returns:
        What was made, in one line.

    Raises:
        UserError: if the folder does not hold a trained run, its network cannot be pruned like that, its data is not here, or `out` is not
            empty or cannot be written.
    """
    convert.check_new(out, "out")
    trained = load_trained(workdir, {"dir": data_dir} if data_dir else {})
    setup, variables = trained.setup, trained.inference.variables
    splits = type(setup.task).open(setup.config, setup.spec)
    check_data(setup.spec, splits.spec)
    model, given = setup.steps.model, dict(variables)
    smaller, cut = dilax.prune(model, given, setup.example, flops=flops, ratio=ratio, by=by, multiple_of=multiple_of)
    pruned = {"batch_stats": {}, **cut}
    after = build(_with_changes(setup.config, smaller), setup.spec)
    pairs, validation = ((setup, variables), (after, pruned)), splits.validation
    metrics = [] if validation is None else [score(each, each.parallel.put(kept), validation)[0] for each, kept in pairs]
    found = {f"validation/{name}": value for name, value in metrics[-1].items()} if metrics else {}
    config = _with_changes(convert.as_source(read_run(workdir)[0]), smaller)
    config.data.dir = setup.config.data.dir
    convert.write_run(out, config, after, pruned, found)
    work = [dilax.multiply_adds(model, given, setup.example), dilax.multiply_adds(smaller, cut, setup.example)]
    sizes = [convert.count(each) for each in (given, cut)]
    name = setup.task.best_by
    scored = f"validation/{name} {metrics[0][name]:.4f} -> {metrics[1][name]:.4f}" if metrics else "no validation split to score"
    return f"{out}: multiply-adds {_change(work)}, parameters {_change(sizes)}, {scored}"


def _with_changes(config: Any, smaller: dilax.Pruned) -> Any:
    """Return a copy of a config with the network that pruning left."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.update({CHANGES: {path: dict(fields) for path, fields in smaller.changes.items()}})
    return config


def _change(values: list[int]) -> str:
    before, after = values
    return f"{before:,} -> {after:,} ({after / before:.0%})"


def main() -> None:
    """Print what was made, and how to train it further."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=cli.folder, help="folder of the run")
    parser.add_argument("--out", required=True, type=cli.folder, help="folder of the run to be made; new or empty")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--flops", type=float, help=f"share of the multiply-adds that may remain; the default is {FLOPS}")
    share.add_argument("--ratio", type=float, help="instead, the share of its channels that each layer loses")
    parser.add_argument("--by", default="magnitude", choices=("magnitude", "scale"), help="what says which channels matter least")
    parser.add_argument(
        "--multiple_of", type=int, default=MULTIPLE, help=f"numbers of channels are multiples of this; the default is {MULTIPLE}"
    )
    parser.add_argument("--data_dir", type=cli.folder, help="where the data is now, if it has moved since training")
    args = parser.parse_args()
    flops = FLOPS if args.flops is None and args.ratio is None else args.flops
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        line = prune(
            args.workdir,
            args.out,
            flops=flops,
            ratio=args.ratio,
            by=args.by,
            multiple_of=args.multiple_of,
            data_dir=str(args.data_dir or ""),
        )
    for warning in caught:
        print(f"warning: {one_line(str(warning.message))}", file=sys.stderr)
    print(line)
    print(f"fine-tune it: python -m train.main --config {args.workdir / 'config.json'} --config.init_from={args.out} --workdir=...")


if __name__ == "__main__":
    cli.run(main)
