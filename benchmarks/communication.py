"""Print what the devices send each other in a training step, by way of spreading it, against the least that is needed.

JAX_NUM_CPU_DEVICES=8 python -m benchmarks.communication

The bytes are those that each device receives in one step, read from the compiled program. "least" is the size of what has to be exchanged:
for gradients the parameters, once; with "fsdp" also the parameters, once, where a step gathers them; with "space" the halo of every
convolution, pooling and resizing, in its output and in both gradients, from the shapes in the traced step. Batch statistics, losses and
norms come on top. Virtual devices say nothing about speed, and nothing is timed.
"""

import collections
import dataclasses
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import dilax
from benchmarks import common
from dilax import DataSpec
from dilax.errors import UserError
from dilax.geometry import effective_kernel_size
from train import cli, parallel
from train.build import Setup, build
from train.config import default_config, model_config

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
MODES = {
    "data": {"data": -1},
    "fsdp": {"data": 1, "fsdp": -1},
    "space": {"data": 1, "space": -1},
    "data and space": {"data": 2, "space": -1},
    "data and fsdp": {"data": 2, "fsdp": -1},
}


def sent(compiled: Any) -> dict[str, list[int]]:
    """Return the sizes in bytes of the results of all exchanges between devices in a compiled program, by kind."""
    found = collections.defaultdict(list)
    for shape, kind in _COLLECTIVE.findall(compiled.as_text()):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        found[kind].append(sum(BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays))
    return dict(found)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with the data that it is trained on.

    Attributes:
        task: Its task.
        model: Its name.
        fields: Fields of the model.
        spec: What the data looks like.
        record: Shapes and dtypes of a record.
    """

    task: str
    model: str
    fields: dict[str, Any]
    spec: DataSpec
    record: dict[str, tuple[tuple[int, ...], Any]]

    def config(self) -> ConfigDict:
        """Return a config for eight devices."""
        config = default_config("communication", task=self.task)
        config.model = ConfigDict(model_config(self.model, **self.fields))
        config.batch_size = 16
        return config

    def batch(self) -> dict[str, np.ndarray]:
        """Return a batch of zeros."""
        return {name: np.zeros((16, *shape), dtype) for name, (shape, dtype) in self.record.items()}


NETWORKS = {
    "separable_cnn 32x32": Network(
        "classification",
        "separable_cnn",
        {},
        DataSpec("images", (32, 32, 3), tuple("abcdefghij"), 160),
        {"image": ((32, 32, 3), np.uint8), "label": ((), np.int32)},
    ),
    "unet_dilated 128x128": Network(
        "segmentation",
        "unet_dilated",
        {},
        DataSpec("masks", (128, 128, 3), tuple("abc"), 160),
        {"image": ((128, 128, 3), np.uint8), "label": ((128, 128), np.uint8)},
    ),
}


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, those of jaxprs within it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def halo(eqn: Any, devices: int) -> int:
    """Return the bytes that a device needs of its neighbours for an operation whose axis 1 is spread over `devices`."""
    name, params = eqn.primitive.name, eqn.params
    if name.startswith("dilated_conv"):
        plan = params["plan"]
        rows = _outside(effective_kernel_size(plan.kernel_size, plan.dilation)[0], plan.padding[0][0], plan.stride[0])
        return rows * plan.batch * math.prod(plan.input_size[1:]) * plan.c_in * np.dtype(plan.dtype).itemsize
    if params.get("axis") != 1 or not name.startswith("dilax_"):
        return 0
    # That of the input; the transposed operation has it as its result.
    shape, dtype = (var := (eqn.outvars if "shape" in params else eqn.invars)[0].aval).shape, var.dtype
    if name.startswith("dilax_slices"):
        rows = _outside(params["starts"][-1] + 1, params["pair"][0], params["stride"])
    else:
        rows = _outside_of_resize(params["old"], params["new"], params["align_corners"], devices)
    return rows * shape[0] * math.prod(shape[2:]) * dtype.itemsize


def _outside(span: int, lo: int, stride: int) -> int:
    """Return how many rows beyond its own the windows of a device reach."""
    return max(0, lo) + max(0, span - stride - lo)


def _outside_of_resize(old: int, new: int, align_corners: bool | None, devices: int) -> int:
    if align_corners is None:
        reached = [[row, row] for row in (2 * np.arange(new) + 1) * old // (2 * new)]
    else:
        matrix = dilax.resize(jax.numpy.eye(old)[None], new, align_corners=align_corners)[0]
        reached = [np.flatnonzero(row)[[0, -1]] for row in np.asarray(matrix)]
    parts = np.array_split(np.array(reached), devices)
    held = old // devices
    before = max(i * held - part.min() for i, part in enumerate(parts))
    after = max(part.max() + 1 - (i + 1) * held for i, part in enumerate(parts))
    return max(0, int(before)) + max(0, int(after))


def least(setup: Setup, step: Any, sizes: dict[str, int]) -> dict[str, int]:
    """Return the bytes that a device has to receive in a step: for gradients, for spread parameters, and of halos."""
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.shapes["params"]))
    halos = sum(halo(eqn, sizes["space"]) for eqn in equations(step.jaxpr)) if sizes["space"] > 1 else 0
    return {
        "gradients": parameters,
        "parameters": parameters if sizes["fsdp"] > 1 else 0,
        "halos": halos // sizes["data"] // sizes["fsdp"],  # of the examples that a device holds
    }


def measure(network: Network, mode: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return what a device receives in a step by kind of exchange, and the least that it has to."""
    config = network.config()
    config.update_from_flattened_dict({f"mesh.{axis}": size for axis, size in mode.items()})
    setup = build(config, network.spec)
    state = jax.eval_shape(setup.steps.init, setup.shapes)
    train, key = setup.parallel.train, jax.random.key(0)
    compiled = train.lower(state, setup.parallel.put_batch(network.batch()), key).compile()
    traced = jax.make_jaxpr(setup.steps.train)(state, jax.tree.map(jax.numpy.asarray, network.batch()), key)
    sizes = parallel.mesh_sizes(config.mesh, jax.device_count())
    return {kind: sum(bytes) for kind, bytes in sent(compiled).items()}, least(setup, traced, sizes)


def main() -> None:
    """Print a table as Markdown."""
    parser = cli.parser(sys.modules[__name__])
    names = ", ".join(NETWORKS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME", help=f"some of: {names}")
    args = parser.parse_args()
    if unknown := [name for name in args.networks if name not in NETWORKS]:
        raise UserError(f"--networks={unknown[0]!r} is unknown; use some of: {names}.")
    if jax.device_count() < 2:
        raise UserError("one device sends nothing; set JAX_NUM_CPU_DEVICES=8.")
    print(common.heading(common.environment()), f"{jax.device_count()} devices; MB that each receives in a step of 16 examples", sep="\n")
    head = ["network", "spread over", *KINDS[:4], "in all", "least", "ratio"]
    print(f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
    for name in args.networks:
        for mode, mesh in MODES.items():
            received, needed = measure(NETWORKS[name], mesh)
            total, lowest = sum(received.values()), sum(needed.values())
            cells = [f"{received.get(kind, 0) / 1e6:.2f}" for kind in KINDS[:4]]
            print(f"| {name} | {mode} | {' | '.join(cells)} | {total / 1e6:.2f} | {lowest / 1e6:.2f} | {total / lowest:.2f} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
