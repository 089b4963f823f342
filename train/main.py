"""Train a model: `python -m train.main --config configs/digits.py [--workdir runs/digits] [--config.optim.lr=0.01]`.

The run resumes where it stopped when the same command is given again. Its folder holds metrics, checkpoints, the best parameters and a
report; `python -m train.evaluate` and `python -m train.predict` take it as --workdir.
"""

import pathlib
import sys

from dilax.loading import STATUS
from train import build, checkpoint, cli, estimate, hosts, listing, loop, runtime, transfer
from train.config import workdir_of


def main() -> int:
    """Run the job that the flags ask for; return the exit code."""
    parser = cli.parser(sys.modules[__name__])
    cli.add_config_flag(parser)
    parser.add_argument("--data", metavar="PATH", help="file or folder of the data: config.data.dir")
    parser.add_argument("--workdir", help="folder of the run; the default is runs/NAME of the config")
    parser.add_argument("--restart", action="store_true", help="begin anew; an earlier run in the folder is moved aside")
    parser.add_argument("--summary", action="store_true", help="print the layers of the model and exit")
    parser.add_argument("--estimate", action="store_true", help="print memory and work of a step on each device and exit")
    parser.add_argument("--list", action="store_true", help="print the configs with task, data, time and measured metric, and exit")
    hosts.add_flags(parser)
    args, overrides = cli.parse_with_config(parser)
    if args.list:
        print(listing.table(pathlib.Path("configs")))
        return 0
    hosts.join(args)  # before the config, which may ask for the number of devices
    config = cli.load_config(args.config, overrides, data=args.data)
    if not config.data.dir and cli.takes_data(args.config):
        cli.fail(f"{args.config} is a config for your own data; say where it is with --data PATH.")
    config, note = transfer.as_pruned(config)
    if note:
        print(note, file=sys.stderr)
    runtime.keep_freed_memory()
    runtime.keep_compiled_programs(config.compilation_cache_dir)
    if args.summary or args.estimate:
        print(build.summary(config) if args.summary else estimate.estimate(config))
        return 0
    workdir = pathlib.Path(workdir_of(config, args.workdir))
    try:
        return loop.run(config, workdir, restart=args.restart)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(stopped(workdir)) from error


def stopped(workdir: pathlib.Path) -> str:
    """Return what a second Ctrl-C, or one before the first step, leaves behind, in one line."""
    steps = checkpoint.saved_steps(workdir)
    if steps:
        return f"stopped at once; step {steps[-1]} is saved in {workdir}; run the same command again to resume from it."
    if (workdir / STATUS).exists():
        return f"stopped at once, before a first checkpoint in {workdir}; run the same command again to begin anew."
    return "stopped before anything was trained."


if __name__ == "__main__":
    cli.run(main)
