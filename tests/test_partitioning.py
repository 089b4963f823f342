"""Operations on arrays that are spread over eight devices exchange the halo and nothing else, which is read from the compiled programs.

One table of operations on maps whose first spatial axis is spread: what each sends, in forward and both gradients, follows from the
geometry. Values are those of one device, for other ways to spread, too.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from selection import slow, with_slow

import dilax
from benchmarks.communication import equations, halo, sent
from dilax import models
from dilax.models.resnet import ResNet
from dilax.models.unet import UNetEncoder

DEVICES = 8


def mesh_of(**axes: int) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(3)
    return [jnp.asarray(rng.normal(0.2, 1.0, shape), jnp.float32) for shape in shapes]


def with_gradients(op: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    """The result of an operation and both gradients, each of the operation alone."""
    y = op(x, kernel)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    return y, *jax.vjp(op, x, kernel)[1](cotangent)


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation of a map and a kernel.

    Attributes:
        op: The operation.
        x: Shape of the map.
        kernel: Shape of the kernel.
        halo: Rows that a device needs of those before and after it, of whichever of input and output is longer.
    """

    op: Callable[..., jax.Array]
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    halo: int


def conv(**options: Any) -> Any:
    return functools.partial(dilax.dilated_conv, **options)


MAP = (2, 64, 6, 8)
CASES = {
    "dense": Case(conv(), MAP, (3, 3, 8, 4), 2),
    "dense, dilation 4": Case(conv(dilation=4), MAP, (3, 3, 8, 4), 8),
    "dense, dilation 31": Case(conv(dilation=31), MAP, (3, 3, 8, 4), 62),
    "dense, dilation 40": Case(conv(dilation=40), MAP, (3, 3, 8, 4), 80),
    "dense, stride 2": Case(conv(stride=2), MAP, (3, 3, 8, 4), 1),
    "causal": Case(conv(padding="CAUSAL", dilation=4), MAP, (3, 3, 8, 4), 8),
    "groups 2": Case(conv(groups=2, dilation=4), MAP, (3, 3, 4, 8), 8),
    "groups 4, stride 2": Case(conv(groups=4, stride=2), MAP, (3, 3, 2, 8), 1),
    "depthwise, dilation 31": Case(functools.partial(dilax.depthwise_conv, dilation=31), MAP, (3, 3, 1, 8), 62),
    "depthwise, multiplier 2": Case(functools.partial(dilax.depthwise_conv, dilation=4), MAP, (3, 3, 1, 16), 8),
    "one tap": Case(conv(), MAP, (1, 1, 8, 4), 0),
    "1-D, dilation 31": Case(conv(dilation=31), (2, 64, 8), (3, 8, 4), 62),
    "1-D, causal": Case(conv(padding="CAUSAL", dilation=40), (2, 64, 8), (2, 8, 4), 40),
    "1-D, depthwise": Case(functools.partial(dilax.depthwise_conv, dilation=4), (2, 64, 8), (3, 1, 8), 8),
    "3-D": Case(conv(dilation=2), (1, 32, 4, 4, 4), (3, 3, 3, 4, 2), 4),
    "transposed": Case(functools.partial(dilax.dilated_conv_transpose, stride=2), (2, 32, 6, 8), (4, 4, 4, 8), 2),
    "transposed, depthwise": Case(functools.partial(dilax.dilated_conv_transpose, dilation=3, groups=8), MAP, (3, 3, 1, 8), 6),
}


def row_bytes(case: Case) -> int:
    """Bytes of a row of the input, or of the output of a transposed convolution, which the halo belongs to."""
    shape = jax.eval_shape(case.op, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (case.x, case.kernel))).shape
    longer = shape if shape[1] > case.x[1] or "transpose" in str(case.op) else case.x
    return 4 * math.prod((longer[0], *longer[2:]))


@functools.cache
def compiled(name: str) -> tuple[Any, tuple[jax.Array, ...]]:
    """An operation and its gradients with the first spatial axis over all devices, compiled, and their results on one device."""
    case, mesh = CASES[name], mesh_of(space=DEVICES)
    space, everywhere = NamedSharding(mesh, P(None, "space")), NamedSharding(mesh, P())
    function = functools.partial(with_gradients, case.op)
    arrays = draw(case.x, case.kernel)
    spread = jax.jit(function, in_shardings=(space, everywhere), out_shardings=(space, space, everywhere))
    return spread.lower(*arrays).compile(), jax.jit(function)(*arrays)


@pytest.mark.parametrize("name", CASES)
def test_only_the_halo_is_sent(name):
    case = CASES[name]
    found = sent(compiled(name)[0])
    # The output and both gradients send the halo once each, and the kernel gradient is summed.
    assert sum(found.pop("collective-permute", [])) == 3 * case.halo * row_bytes(case)
    assert found == {"all-reduce": [4 * math.prod(case.kernel)]}


@pytest.mark.parametrize("name", CASES)
def test_the_least_that_has_to_be_sent(name):
    """As the benchmark of communication reads it from shapes."""
    case = CASES[name]
    jaxpr = jax.make_jaxpr(functools.partial(with_gradients, case.op))(*draw(case.x, case.kernel))
    assert sum(halo(eqn, DEVICES) for eqn in equations(jaxpr.jaxpr)) == 4 * case.halo * row_bytes(case)  # the output is traced twice


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_one_device(name):
    case, (program, expected) = CASES[name], compiled(name)
    arrays = [jax.device_put(a, sharding) for a, sharding in zip(draw(case.x, case.kernel), program.input_shardings[0])]
    for actual, wanted in zip(program(*arrays), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6 * float(jnp.abs(wanted).max()))


# Ways to spread map and kernel over devices: the mesh, and the axes of both over which they are spread.
SPREAD = {
    "batch": ({"data": 8}, ("data",), ()),
    "batch and rows": ({"data": 2, "space": 4}, ("data", "space"), ()),
    "rows and columns": ({"y": 4, "x": 2}, (None, "y", "x"), ()),
    "rows over both": ({"data": 2, "space": 4}, (None, ("data", "space")), ()),
    "output channels": ({"data": 4, "model": 2}, ("data",), (None, None, None, "model")),
    "input channels": ({"data": 4, "model": 2}, ("data", None, None, "model"), (None, None, "model")),
    "kernel over the axis of the batch": ({"data": 8}, ("data",), (None, None, None, "data")),
}


@pytest.mark.parametrize("groups", [1, 2, *slow(8)])
@pytest.mark.parametrize("way", SPREAD)
def test_other_ways_to_spread(way, groups):
    axes, x_spec, kernel_spec = SPREAD[way]
    if groups > 2 and way == "input channels":
        kernel_spec = ()  # an axis of one channel
    mesh = mesh_of(**axes)
    x, kernel = draw((8, 8, 6, 8), (3, 3, 8 // groups, 8))
    function = functools.partial(with_gradients, conv(dilation=2, groups=groups))
    arrays = [jax.device_put(a, NamedSharding(mesh, P(*spec))) for a, spec in ((x, x_spec), (kernel, kernel_spec))]
    program = jax.jit(function).lower(*arrays).compile()
    for actual, wanted in zip(program(*arrays), jax.jit(function)(x, kernel), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()))
    if (way, groups) != ("input channels", 2):  # of which the groups cannot be spread
        # A kernel may be gathered, a map may not.
        assert max(sent(program).get("all-gather", [0])) <= 4 * kernel.size


OPERATIONS = {
    "dense": conv(dilation=3),
    "valid": conv(padding="VALID"),
    "stride 2": conv(stride=2, padding="TORCH"),
    "depthwise": lambda x, kernel: dilax.depthwise_conv(x, kernel[:, :, :1, :4]),
    "transposed": functools.partial(dilax.dilated_conv_transpose, stride=2),
    "max_pool": lambda x, kernel: dilax.max_pool(x * kernel[0, 0, 0, 0], 3, stride=2, padding="SAME"),
    "max_pool, 6 taps": lambda x, kernel: dilax.max_pool(x * kernel[0, 0, 0, 0], 6, stride=1),
    "avg_pool": lambda x, kernel: dilax.avg_pool(x * kernel[0, 0, 0, 0], 3, stride=1, padding="SAME", count_padding=False),
    "resize": lambda x, kernel: dilax.resize(x * kernel[0, 0, 0, 0], (2 * x.shape[1] - 1, 7), align_corners=True),
    "shrink": lambda x, kernel: dilax.resize(x * kernel[0, 0, 0, 0], (x.shape[1] // 3 + 1, 7)),
    "nearest": lambda x, kernel: dilax.resize(x * kernel[0, 0, 0, 0], (3 * x.shape[1] // 2, 7), method="nearest"),
}


SIZES = {"5, 9": (5, 9), "2, 30": (2, 30), "3, 17": (3, 17)}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sizes", with_slow(SIZES, kept=("5, 9",)))
def test_sizes_that_do_not_divide(name, sizes):
    mesh, function = mesh_of(data=2, space=4), functools.partial(with_gradients, OPERATIONS[name])
    x, kernel = draw((*SIZES[sizes], 6, 4), (3, 3, 4, 4))

    def spread(x: jax.Array, kernel: jax.Array) -> Any:
        return function(jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data", "space"))), kernel)

    for actual, wanted in zip(jax.jit(spread)(x, kernel), jax.jit(function)(x, kernel), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()))


# The halo of an operation, in rows of the input, all of them 6 columns and 8 channels.
POOLED = {
    "max_pool": (lambda x: dilax.max_pool(x, 2), 0),
    "max_pool, stride 2": (lambda x: dilax.max_pool(x, (3, 1), stride=(2, 1), padding="SAME"), 1),
    "max_pool, dilation 4": (lambda x: dilax.max_pool(x, (3, 1), stride=1, dilation=4, padding="SAME"), 8),
    "avg_pool": (lambda x: dilax.avg_pool(x, (3, 1), stride=1, padding="SAME"), 2),
    "twice the size": (lambda x: dilax.resize(x, (128, 6)), 2),
    "3/2 of the size": (lambda x: dilax.resize(x, (96, 6)), 2),
    "half the size": (lambda x: dilax.resize(x, (32, 6)), 0),
    "nearest": (lambda x: dilax.resize(x, (96, 6), method="nearest"), 0),
}


@pytest.mark.parametrize("name", POOLED)
def test_pooling_and_resizing_send_the_halo(name):
    op, halo_rows = POOLED[name]
    space = NamedSharding(mesh_of(space=DEVICES), P(None, "space"))
    (x,) = draw(MAP)

    def function(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull_back = jax.vjp(op, x)
        return y, pull_back(jnp.cos(y))[0]

    program = jax.jit(function, in_shardings=space, out_shardings=space).lower(x).compile()
    assert sum(halo(eqn, DEVICES) for eqn in equations(jax.make_jaxpr(function)(x).jaxpr)) == 2 * halo_rows * 4 * math.prod(
        (MAP[0], *MAP[2:])
    )
    found = sent(program)
    assert sum(found.pop("collective-permute", [])) == 2 * halo_rows * 4 * math.prod((MAP[0], *MAP[2:]))
    assert found == {}
    for actual, wanted in zip(program(jax.device_put(x, space)), jax.jit(function)(x), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


class Normalised(nn.Module):
    """A map that is normalised by the statistics of the batch."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return dilax.blocks.Norm("batch")(x, train=train)


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "batch norm": (Normalised(), MAP),
    "U-Net": (models.UNet(backbone=functools.partial(UNetEncoder, stage_features=(4, 8)), num_classes=2), (2, 32, 8, 3)),
    "DeepLab": (
        models.DeepLabV3(backbone=functools.partial(ResNet, blocks=(1,) * 4, stage_features=(4,) * 4), head_features=4),
        (2, 128, 16, 3),
    ),
    "TCN": (models.TCN(out_features=2, kernel_size=3, features=(4, 4, 4, 4)), (2, 64, 3)),
}


@pytest.mark.parametrize("name", with_slow(NETWORKS, repeats=("U-Net",)))
def test_a_training_step_gathers_no_map(name):
    model, shape = NETWORKS[name]
    mesh = mesh_of(space=DEVICES)
    everywhere = NamedSharding(mesh, P())
    (x,) = draw(shape)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)

    def loss(params: Any, rest: Any, x: jax.Array) -> jax.Array:
        y, _ = model.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
        return jnp.square(y - 1).mean()

    params = variables.pop("params")
    step = jax.jit(jax.grad(loss), in_shardings=(everywhere, everywhere, NamedSharding(mesh, P(None, "space"))), out_shardings=everywhere)
    program = step.lower(params, variables, x).compile()
    assert {"all-gather", "all-to-all"}.isdisjoint(sent(program))


@pytest.mark.parametrize("op", [conv(dilation=2), dilax.depthwise_conv], ids=["dense", "depthwise"])
def test_each_device_holds_its_share(op):
    x, kernel = draw((1, 512, 32, 8), (3, 3, 1 if op is dilax.depthwise_conv else 8, 8))

    def temporary(devices: int) -> int:
        mesh = jax.make_mesh((devices,), ("space",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        space, everywhere = NamedSharding(mesh, P(None, "space")), NamedSharding(mesh, P())
        function = functools.partial(with_gradients, op)
        spread = jax.jit(function, in_shardings=(space, everywhere), out_shardings=(space, space, everywhere))
        memory: Any = spread.lower(x, kernel).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporary(8) < 1.2 * temporary(2) / 4 < temporary(1) / 2


@pytest.mark.parametrize(("groups", "convolutions"), [(1, 1), (2, 2), (8, 1)])
def test_tpus_partition_plain_convolutions(groups, convolutions):
    """They take no partitioning rules; and of a convolution with groups, XLA would gather the input."""
    space = NamedSharding(mesh_of(space=DEVICES), P(None, "space"))
    x, kernel = draw(MAP, (3, 3, 8 // groups, 8))
    text = jax.jit(conv(groups=groups), in_shardings=(space, None)).trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    assert "CustomSPMDPartitioning" not in text
    assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_exported_programs_hold_no_rules(platform):
    space = NamedSharding(mesh_of(space=DEVICES), P(None, "space"))
    x, kernel = draw(MAP, (3, 3, 8, 8))
    jitted = jax.jit(lambda x, kernel: dilax.resize(dilax.max_pool(dilax.dilated_conv(x, kernel), 2), 48), in_shardings=(space, None))
    exported = export.export(jitted, platforms=(platform,))(x, kernel)
    assert "custom_call" not in exported.mlir_module().replace("@Sharding", "")
    if platform == "cpu":
        wanted = jitted(x, kernel)
        np.testing.assert_allclose(
            exported.call(jax.device_put(x, space), jax.device_put(kernel, NamedSharding(space.mesh, P()))), wanted, rtol=1e-5, atol=1e-5
        )


def test_one_axis_may_be_left_to_the_compiler():
    """Under `shard_map` over the batch alone, rows are partitioned as XLA does it."""
    mesh = mesh_of(data=2, space=4)
    x, kernel = draw(MAP, (3, 3, 8, 8))

    def part(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return dilax.resize(dilax.max_pool(dilax.dilated_conv(x, kernel), 2), 48)

    spread = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}))
    y = spread(jax.device_put(x, NamedSharding(mesh, P("data", "space"))), kernel)
    np.testing.assert_allclose(y, jax.jit(part)(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool", "resize", "nearest"])
def test_transforms_of_pooling_and_resizing(name):
    op, (x, kernel) = OPERATIONS[name], draw((2, 16, 6, 4), (3, 3, 4, 4))
    apply = lambda x: op(x, kernel)  # noqa: E731
    np.testing.assert_allclose(jax.vmap(apply, in_axes=1, out_axes=1)(jnp.stack([x, 2 * x], 1))[:, 1], apply(2 * x), rtol=1e-5)
    tangent = jnp.sin(x)
    step = 1e-3 * tangent
    change = (apply(x + step) - apply(x - step)) / 2e-3
    np.testing.assert_allclose(jax.jvp(apply, (x,), (tangent,))[1], change, rtol=1e-2, atol=1e-2)
    hessian = jax.jvp(jax.grad(lambda x: jnp.sum(apply(x) ** 2)), (x,), (tangent,))[1]
    forward = jax.grad(lambda x: jnp.vdot(jax.grad(lambda x: jnp.sum(apply(x) ** 2))(x), tangent))(x)
    np.testing.assert_allclose(hessian, forward, rtol=1e-4, atol=1e-4)


def test_programs_that_differ_in_a_rule_have_different_texts():
    """By which the compilation cache tells them apart, if it leaves out the addresses of the rules."""
    space = NamedSharding(mesh_of(space=DEVICES), P(None, "space"))
    x, kernel = draw(MAP, (3, 3, 8, 8))
    texts = [jax.jit(conv(dilation=dilation), in_shardings=(space, None)).lower(x, kernel).as_text() for dilation in (2, 2, 3)]
    same, other = (re.sub(r'backend_config = "\d+"', "", text) for text in texts[1:])
    assert "CustomSPMDPartitioning" in same
    assert re.sub(r'backend_config = "\d+"', "", texts[0]) == same != other


@pytest.mark.parametrize("name", with_slow(OPERATIONS, kept=("dense", "depthwise", "max_pool", "resize")))
def test_operations_run_without_jit(name):
    x, kernel = draw((2, 9, 6, 4), (3, 3, 4, 4))
    function = functools.partial(with_gradients, OPERATIONS[name])
    with jax.disable_jit():
        found = function(x, kernel)
    for actual, wanted in zip(found, function(x, kernel), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
