"""No field is smaller than what a dense probe finds, and tiles equal the whole image, for known difficult functions and random programs."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import dilax
from dilax import ReceptiveField
from dilax.errors import UserError
from dilax.receptive_fields import reaches, receptive_fields
from dilax.receptive_fields.jaxprs import computed_arrays, scan_parts

SIZE = 30


def draw(*shape, seed=0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv(x, taps=3, mode="zeros", **options):
    """A convolution with a bias, which tells padding from samples."""
    kernel = draw(taps, x.shape[-1], 2, seed=taps) / np.sqrt(taps * x.shape[-1])
    return jnp.tanh(dilax.dilated_conv(x, kernel, padding_mode=mode, **options) + 0.3)


def banded(x, taps, stride=1, weight=lambda o: 1.0):
    """The product with a matrix whose row o holds weights in the columns o * stride + taps."""
    n = x.shape[1]
    matrix = np.zeros((n // stride, n), np.float32)
    for i, tap in enumerate(taps):
        for o in range(len(matrix)):
            if 0 <= o * stride + tap < n:
                matrix[o, o * stride + tap] = weight(o) + i
    return jnp.einsum("ntc,ot->noc", x, jnp.asarray(matrix))


def taken(x, indices, mode="clip"):
    return jnp.take(x, jnp.asarray(indices), 1, mode=mode)


def swapped(x, length=3):
    """A loop whose carry changes places, and whose second part becomes a constant that varies along the axis."""
    ramp = jnp.linspace(0.0, 1.0, x.shape[1])[None, :, None] * jnp.ones_like(x)
    return lax.scan(lambda s, _: ((s[0] + s[1], ramp), None), (x, jnp.tanh(x)), None, length=length)[0][0]


# Each function, and the size and the period of its field; None in place of the pair if a tile may be smaller than what is seen.
KNOWN = {
    "lag of 8": (lambda x: banded(x, (0, -8)), (9, 1)),
    "taps that jump": (lambda x: banded(x, (-4, 0, 2)), (7, 1)),
    "taps that jump, stride 2": (lambda x: banded(x, (-4, 0, 3), 2), (8, 2)),
    "weights of period 2": (lambda x: banded(x, (-1, 3), 1, lambda o: 1 + o % 2), (5, 2)),
    "one row of other weights": (lambda x: banded(x, (-1, 3), 1, lambda o: 1 + (o == 11)), (5, None)),
    "a modulo": (lambda x: taken(x, (np.arange(SIZE) + 5) % SIZE), (1, None)),
    "a jump": (lambda x: taken(x, [*range(14), *range(17, 30)]), (1, None)),
    "clipped": (lambda x: taken(x, np.clip(np.arange(SIZE) + 3, 0, SIZE - 1)), (1, 1)),
    "pieces of other values": (lambda x: jnp.concatenate([0.5 * x[:, :8], x[:, 8:]], 1), (1, None)),
    "pieces that read elsewhere": (lambda x: jnp.concatenate([x[:, :20], x[:, 16:28]], 1), (1, None)),
    "a piece that sees more": (lambda x: jnp.concatenate([x[:, :20], conv(x, dilation=4)[:, 20:]], 1), (9, None)),
    "the same twice": (lambda x: jnp.concatenate([conv(x), x], 1), (3, None)),
    "the other end in front": (lambda x: jnp.concatenate([x[:, ::-1][:, :3], x], 1), (None, None)),
    "rolled": (lambda x: jnp.roll(x, 4, 1), (1, None)),
    "cut and joined": (lambda x: jnp.concatenate(jnp.split(conv(x), 3, 1), 1), (3, 1)),
    "reflected alone": (lambda x: jnp.pad(x, ((0, 0), (3, 4), (0, 0)), mode="reflect"), (1, 1)),
    "edges alone": (lambda x: jnp.pad(x, ((0, 0), (3, 4), (0, 0)), mode="edge"), (1, 1)),
    "cropped and reflected": (lambda x: conv(x[:, 5:-4], mode="reflect", dilation=2), (5, None)),
    "bias in gaps, padded": (lambda x: conv(lax.pad(x, jnp.float32(0), ((0, 0, 0), (0, 0, 1), (0, 0, 0))) + 1, dilation=1), (2, 1)),
    "nothing but constants, padded": (
        lambda x: conv(lax.pad(x, jnp.float32(0), ((0, 0, 0), (0, 1, 1), (0, 0, 0)))[:, 1::2] + 1, dilation=3),
        (0, 1),
    ),
    "a loop that adds a ramp": (swapped, (1, None)),
    "a branch that is a ramp": (lambda x: x + lax.cond(jnp.int32(1) > 0, lambda x: x, lambda x: x * 0 + jnp.arange(float(SIZE))[None, :, None], x), (1, None)),
    "a loop of constant branches": (lambda x: x + lax.cond(jnp.int32(1) > 0, lambda x: x, lambda _: jnp.ones((1, SIZE, 2)), x), (1, 1)),
    "one sample everywhere": (lambda x: x + x[:, 4:5], (26, None)),
    "stacked": (lambda x: jnp.stack([conv(x), x[:, ::1]], 1).max(1), (3, 1)),
    "interleaved": (lambda x: jnp.stack([x, 2 * x], 2).reshape(1, 2 * SIZE, 2), (1, 1)),
    "stacked with a ramp": (lambda x: jnp.stack([x, x * 0 + jnp.arange(float(SIZE))[None, :, None]], 1).sum(1), (1, None)),
    "unstacked": (lambda x: sum(jnp.unstack(conv(x).reshape(1, SIZE, 2, 1), axis=2)), (3, 1)),
    "tiled": (lambda x: jnp.tile(conv(x), (1, 2, 1)), (3, None)),
    "tiled over channels": (lambda x: jnp.tile(conv(x), (1, 1, 3)), (3, 1)),
    "digitized": (lambda x: jnp.digitize(conv(x), jnp.asarray([-0.5, 0.5])).astype(jnp.float32), (3, None)),
    "embedded": (lambda x: jnp.asarray(draw(3, 4))[(conv(x)[..., 0] > 0).astype(int)], (3, 1)),
    "read from a table by position": (lambda x: jnp.asarray(draw(SIZE, 3))[jnp.arange(SIZE), (conv(x)[0, :, 0] > 0).astype(int)][None, :, None], (3, None)),
    "top channels": (lambda x: lax.top_k(conv(x), 1)[0], (3, 1)),
    "top samples": (lambda x: lax.top_k(x.swapaxes(1, 2), SIZE)[0].swapaxes(1, 2), (None, None)),
    "one sample set": (lambda x: conv(x).at[:, 7].set(0.0), (3, None)),
    "one channel set": (lambda x: conv(x).at[..., 0].set(0.0), (3, 1)),
    "shifted by an update": (lambda x: jnp.zeros_like(x).at[:, 6:].add(x[:, :-6]), (1, None)),
    "scattered": (lambda x: x.at[:, jnp.asarray([2, 9, 21])].add(x[:, -3:]), (26, None)),
    "written into a ramp": (lambda x: jnp.broadcast_to(jnp.arange(float(SIZE))[None, :, None], (1, SIZE, 2)).at[..., 0].set(x[..., 0]), (1, None)),
    "samples replaced by a later one": (lambda x: x.at[:, 3:6].set(x[:, 20:23]), (1, None)),
    "updated": (lambda x: lax.dynamic_update_slice(x, conv(x)[:, :4], (0, 20, 0)), (3, None)),
    "another image": (lambda x: x.at[:, :].set(conv(x)), (3, 1)),
    "batch and axis merged": (lambda x: (jnp.concatenate([x, 2 * x]).reshape(-1, 2) @ draw(2, 2)).reshape(2, SIZE, 2), (1, 1)),
}  # fmt: skip


def seen_by_probe(fn, shape, axis):
    """Return (outputs, inputs): which outputs change with the values of each sample along an axis, on two backgrounds."""
    n, seen = shape[1 + axis], False
    for scale in (1.0, 0.3):
        x = scale * draw(*shape, seed=3)
        changed = np.stack([x] * (n + 1))
        for i in range(n):
            place = (i + 1, *(slice(None),) * (1 + axis), i)
            changed[place] += draw(*changed[place].shape, seed=i)
        ys = np.asarray(lax.map(fn, jnp.asarray(changed)))
        difference = np.abs(ys[1:] - ys[0]) > 1e-5 * np.abs(ys).max()
        seen = seen | np.moveaxis(difference, 2 + axis, 1).any(tuple(range(2, difference.ndim))).T
    return seen


def check_field(fn, shape):
    """Check that every output lies within the field, and sees no more than its set where it is not affected by the border."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    for axis, (field, reach) in enumerate(zip(receptive_fields(fn, x)[0], reaches(fn, x))):
        if field.size is None or reach is None:
            continue
        inputs = shape[1 + axis]
        for o, row in enumerate(seen_by_probe(fn, shape, axis)):
            probed = np.flatnonzero(row)
            if not len(probed):
                continue
            assert o * field.stride - field.left <= probed[0] and probed[-1] <= o * field.stride + field.right, (axis, o, probed, field)
            if reach.lies_inside(o, inputs) and reach.is_intact(o, inputs):
                first, bits = reach.at(o)
                assert all(i >= first and bits >> (i - first) & 1 for i in probed.tolist()), (axis, o, probed, field)
        check_shift(fn, shape, axis, field, reach)


def check_shift(fn, shape, axis, field, reach):
    """Check that an input shifted by the period gives an output shifted by period / stride where neither is affected by the border."""
    if field.period is None:
        return
    x, step, along = draw(*shape, seed=5), int(field.period / field.stride), 1 + axis
    y, moved = (np.asarray(fn(jnp.asarray(x))) for x in (x, np.roll(x, field.period, along)))
    size = shape[along]
    both = [o for o in range(y.shape[along] - step) if reach.is_intact(o, size - field.period) and reach.is_intact(o, size)]
    np.testing.assert_allclose(moved.take([o + step for o in both], along), y.take(both, along), rtol=1e-3, atol=1e-4 * np.abs(y).max())


def check_tiles(fn, shape, tile):
    """Check that tiles equal the whole image, or are refused before any is computed."""
    x = draw(*shape, seed=7)
    try:
        y = dilax.tiled(fn, tile, check=False)(x)
    except UserError:
        return
    expected = jax.jit(fn)(x)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", KNOWN)
def test_known_functions(name):
    fn, (size, period) = KNOWN[name]
    ((field,),) = receptive_fields(fn, jax.ShapeDtypeStruct((1, SIZE, 2), jnp.float32))
    assert (field.size, field.period) == (size, period)
    check_field(fn, (1, SIZE, 2))
    check_tiles(fn, (1, SIZE, 2), 5)


IMAGES = {
    "pieces that differ along the other axis": lambda x: jnp.concatenate([x[:, :10], jnp.roll(x, 3, 2)[:, 10:]], 1),
    "a ramp along the other axis, joined": lambda x: jnp.concatenate([x, x[:, :3] * jnp.arange(9.0)[None, None, :, None]], 1),
    "both axes merged": lambda x: (x.reshape(1, -1, 2) @ draw(2, 2)).reshape(x.shape),
    "both axes merged, then read along": lambda x: jnp.roll(x.reshape(1, -1, 2), 1, 1).reshape(x.shape),
    "rows as a batch": lambda x: conv(x.reshape(-1, x.shape[2], 2)).reshape(x.shape),
    "a window updated": lambda x: x.at[:, 2:5, 3:6].set(x[:, :3, :3]),
    "flipped along one axis": lambda x: x + x[:, :, ::-1],
}


@pytest.mark.parametrize("name", IMAGES)
def test_known_functions_of_images(name):
    check_field(IMAGES[name], (1, 12, 9, 2))
    check_tiles(IMAGES[name], (1, 12, 9, 2), (4, None))


def test_merged_axes_are_told_apart():
    x = jax.ShapeDtypeStruct((3, 12, 9, 2), jnp.float32)
    assert dilax.receptive_field(IMAGES["both axes merged"], jax.ShapeDtypeStruct((1, 12, 9, 2), jnp.float32)) == (ReceptiveField(1),) * 2
    rows = dilax.receptive_field(lambda x: conv(x.reshape(-1, 9, 2)).reshape(x.shape), x)
    assert rows == (ReceptiveField(1), ReceptiveField(3, 1, -1, 1, 1))


def operation(rng):
    """Return a random operation that keeps the rank."""
    taps, stride, dilation, shift = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 3), (1, 4), (1, 7)))
    seed, kind = int(rng.integers(99)), int(rng.integers(4))
    padding, mode = rng.choice(["SAME", "VALID", "CAUSAL", "TORCH"]), str(rng.choice(["zeros", "reflect", "edge", "wrap"]))
    weight = [lambda o: 1.0, lambda o: 1 + o % 2, lambda o: 1 + (o == 9), lambda o: 1 + (o * 7919) % 13][kind]
    bands = sorted(int(tap) for tap in rng.integers(-7, 8, 3))
    indices = [
        lambda n: (np.arange(n) + shift) % n,
        lambda n: np.clip(np.arange(n) - shift, 0, n - 1),
        lambda n: np.random.default_rng(seed).integers(0, n, n),
        lambda n: np.arange(0, n, stride),
    ][kind]
    pieces = [
        lambda x: [0.5 * x[:, : 2 * shift], x[:, 2 * shift :]],
        lambda x: [x[:, : 2 * shift], x[:, shift:]],
        lambda x: [x[:, shift:], x[:, :shift]],
        lambda x: [conv(x)[:, :shift], jnp.ones_like(x[:, :2]), x[:, shift:]],
    ][kind]
    written = [
        lambda x: x.at[:, shift].set(0.0),
        lambda x: x.at[:, shift:].multiply(2.0),
        lambda x: x.at[..., :1].set(0.5),
        lambda x: x.at[:, jnp.asarray(indices(x.shape[1])[:3])].add(x[:, -3:]),
    ][kind]
    return [
        lambda x: conv(x, taps, stride=stride, dilation=dilation, padding=padding, mode="zeros" if padding == "VALID" else mode),
        lambda x: dilax.dilated_conv_transpose(x, draw(taps, 2, x.shape[-1]), stride=stride, dilation=dilation) + 0.2,
        lambda x: dilax.max_pool(x, taps, stride=stride, padding="SAME"),
        lambda x: dilax.avg_pool(x, taps, stride=stride, padding="SAME", count_padding=False),
        lambda x: lax.pad(x, jnp.float32(0.5), ((0, 0, 0), (2 - shift, kind - 1, stride - 1), (0, 0, 0))),
        lambda x: x[:, shift : x.shape[1] - kind : stride],
        lambda x: taken(x, indices(x.shape[1]), str(np.random.default_rng(seed).choice(["clip", "fill"]))),
        lambda x: banded(x, bands, stride, weight),
        lambda x: jnp.concatenate(pieces(x), 1),
        lambda x: jnp.concatenate([x, jnp.roll(x, shift, 1)], -1),
        lambda x: conv(x.swapaxes(0, 1).swapaxes(0, 1), taps),
        lambda x: jnp.tanh(x.reshape(-1, x.shape[-1]) * 1.5).reshape(x.shape),
        lambda x: x[:, : x.shape[1] // 2 * 2].reshape(1, -1, 2, x.shape[-1]).max(2),
        lambda x: lax.scan(lambda y, k: (dilax.dilated_conv(y, k, dilation=dilation), None), x, draw(2, 3, x.shape[-1], x.shape[-1]))[0],
        lambda x: swapped(x, taps) if kind else lax.scan(lambda s, t: (s + t, s), x[:, 0], x.swapaxes(0, 1))[1].swapaxes(0, 1),
        lambda x: lax.cond(jnp.int32(kind) > 1, lambda x: jnp.roll(x, shift, 1), lambda x: 2 * x, x),
        lambda x: jnp.cumsum(x, 1 if kind == 0 else -1),
        lambda x: x[:, ::-1][:, : shift + 4] if kind else x + x[:, ::-1],
        lambda x: jnp.stack([x, jnp.roll(x, shift, 1)], 1 + kind % 2).max(1 + kind % 2),
        lambda x: jnp.tile(x, (1, 2, 1) if kind else (1, 1, 2)),
        written,
        lambda x: lax.top_k(x, 1)[0],
        lambda x: x + x[:, kind : kind + 1],
        lambda x: x + dilax.resize(conv(x, stride=2), x.shape[1:-1]),
    ][int(rng.integers(24))]  # fmt: skip


def program(seed, shape):
    """Return a function of 2 to 4 random operations that fit together."""
    rng = np.random.default_rng(seed)
    while True:
        operations = [operation(rng) for _ in range(int(rng.integers(2, 5)))]

        def fn(x, operations=operations):
            for step in operations:
                x = step(x)
            return x

        try:
            result = jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
        except (UserError, ValueError, TypeError, IndexError):  # too short for one of them
            continue
        if 0 not in result:
            return fn


@pytest.mark.parametrize("seed", range(24))
def test_random_programs(seed):
    shape = (1, SIZE, 2)
    fn = program(seed, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_field(fn, shape)
        check_tiles(fn, shape, 5)


def test_parts_of_a_scan():
    def fn(x):
        return lax.scan(lambda s, k: ((s[0] * k, s[1] + x.sum()), s[0]), (x, jnp.float32(0)), jnp.ones((3,)))

    (eqn,) = (eqn for eqn in jax.make_jaxpr(fn)(jnp.ones(4)).eqns if eqn.primitive.name == "scan")
    assert scan_parts(eqn).carry == 2
    assert len(eqn.invars) - sum(scan_parts(eqn)) == 1


def test_arrays_within_inner_jaxprs():
    closed = jax.make_jaxpr(lambda x: lax.cond(x.sum() > 0, lambda x: jnp.outer(x, x).sum(0), lambda x: x, x))(jnp.ones(4))
    assert max(aval.size for aval in computed_arrays(closed)) == 16


def test_parts_per_device_are_refused():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "x")
    fn = jax.shard_map(conv, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(UserError, match="'shard_map' is not supported"):
        dilax.receptive_field(fn, jax.ShapeDtypeStruct((1, SIZE, 2), jnp.float32))


def test_the_cost_follows_the_input():
    """A dilation of a million on a short input: the work is that of a few taps, not of all places between them."""
    x = jax.ShapeDtypeStruct((1, SIZE, 2), jnp.float32)
    (field,) = receptive_fields(lambda x: conv(conv(x, dilation=10**6), stride=2), x)[0]
    assert (field.size, field.stride, field.offset) == (2 * 10**6 + 3, 2, -(10**6))
    (reach,) = reaches(lambda x: conv(x, dilation=10**6), x)
    assert reach is not None and reach.at(5) == (5 - 10**6, 1 | 1 << 10**6 | 1 << 2 * 10**6)
