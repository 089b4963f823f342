"""Compare tiled inference with the whole image (law 8): one table of functions, images that are not multiples of the tile, and errors."""

import functools
import subprocess
import sys
from typing import Any, NamedTuple, cast

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

import dilax
from dilax import tile_plans
from dilax.errors import UserError


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv(x, taps: Any = 3, features=3, **options):
    """A convolution with a bias, so that padding in later layers differs from what the first layer computes beyond the border."""
    window = (taps,) * (x.ndim - 2) if isinstance(taps, int) else taps
    kernel = draw(*window, x.shape[-1], features, seed=len(window)) / np.sqrt(np.prod(window) * x.shape[-1])
    return jnp.tanh(dilax.dilated_conv(x, kernel, **options) + jnp.full((1,) * (x.ndim - 1) + (features,), 0.7))


def transposed(x, taps=4, **options):
    kernel = draw(*(taps,) * (x.ndim - 2), 3, x.shape[-1], seed=5) / taps
    return dilax.dilated_conv_transpose(x, kernel, **options) + 0.3


def resized(x, size, method="linear"):
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), method)


def encoder(x):
    """An encoder of output stride 8, with a dilated last stage."""
    return conv(conv(conv(conv(x, 7, stride=2), stride=2, padding="TORCH"), stride=2), dilation=2)


def segmenter(x):
    """An encoder whose output is enlarged to the size of the input, as in segmentation models."""
    return resized(encoder(x), x.shape[1:-1])


def unet(x):
    """A U-Net with skip connections at two strides; sizes that are not multiples of a stride are cropped."""
    a = conv(x)
    b = conv(dilax.max_pool(a, 2, padding="SAME"))
    c = conv(b, stride=2, dilation=2)
    b = conv(jnp.concatenate([b, transposed(c, stride=2, output_size=b.shape[1:-1])], -1))
    return conv(jnp.concatenate([a, transposed(b, 2, stride=2, output_size=a.shape[1:-1])], -1), features=2)


def tcn(x):
    for dilation in (1, 2, 4):
        x = x + conv(x, 2, features=x.shape[-1], dilation=dilation, padding="CAUSAL")
    return x


class Case(NamedTuple):
    fn: Any
    space: tuple[int, ...]
    tile: Any
    batch: int = 1
    channels: int = 2


CASES = {
    "one layer": Case(lambda x: conv(x), (50,), 7),
    "pointwise": Case(lambda x: jnp.tanh(x), (50,), 7),
    "even taps": Case(lambda x: conv(conv(x, 4), 2, dilation=3), (50,), 7),
    "stack": Case(lambda x: conv(conv(conv(x), dilation=2), dilation=5), (71,), 10),
    "causal": Case(tcn, (60,), 9, batch=2),
    "anticausal": Case(lambda x: conv(conv(x, padding=((0, 2),)), 2, padding=((0, 4),), dilation=4), (60,), 9),
    "valid": Case(lambda x: conv(conv(x, padding="VALID"), padding="VALID", dilation=4), (60,), 9),
    "sees only later samples": Case(lambda x: conv(x)[:, 5:], (60,), 9),
    "sees only earlier samples": Case(lambda x: conv(x)[:, :-5], (60,), 9),
    "cropped before, then padded": Case(lambda x: conv(conv(x)[:, 3:], 4), (60,), 9),
    "cropped after, then padded": Case(lambda x: conv(conv(x)[:, :-3], 4), (60,), 9),
    "cropped, padded, joined": Case(lambda x: conv(x)[:, :-6] + conv(x[:, 2:-4], padding="CAUSAL", dilation=2), (60,), 9),
    "cut and joined again": Case(lambda x: conv(jnp.concatenate(jnp.array_split(conv(x), 3, 1), 1)), (60,), 9),
    "shifted into the padding": Case(lambda x: jnp.pad(conv(x), ((0, 0), (6, 4), (0, 0))), (60,), 9),
    "stride 2, even": Case(lambda x: conv(x, stride=2), (64,), 10),
    "stride 2, odd": Case(lambda x: conv(x, stride=2), (65,), 10),
    "stride 3, even taps": Case(lambda x: conv(conv(x, 4, stride=3)), (64,), 10),
    "strides 2 and 3": Case(lambda x: conv(conv(conv(x, stride=2), stride=3), dilation=2), (101,), 12),
    "stride above the window": Case(lambda x: conv(x, 2, stride=5, padding="VALID"), (64,), 10),
    "tile below the stride": Case(lambda x: conv(conv(x, stride=4), stride=2), (77,), 1),
    "reflected": Case(lambda x: conv(conv(x, padding_mode="reflect", dilation=3), padding_mode="reflect"), (50,), 4),
    "reflected, causal": Case(lambda x: conv(x, padding="CAUSAL", padding_mode="reflect", dilation=6), (50,), 3),
    "edge": Case(lambda x: conv(conv(x, padding_mode="edge"), 5, padding_mode="edge", stride=2), (50,), 8),
    "average of samples": Case(lambda x: dilax.avg_pool(conv(x), 5, stride=2, padding="SAME", count_padding=False), (51,), 8),
    "max pooling": Case(lambda x: dilax.max_pool(conv(x), 3, stride=2, padding="SAME"), (51,), 8),
    "transposed": Case(lambda x: transposed(conv(x), stride=2), (50,), 8),
    "transposed, stride 3": Case(lambda x: conv(transposed(conv(x, stride=2), 5, stride=3, padding="VALID")), (50,), 8),
    "repeated": Case(lambda x: conv(jnp.repeat(conv(x, stride=4), 4, 1)), (64,), 9),
    "down and up, cropped": Case(lambda x: jnp.repeat(conv(x, stride=4), 4, 1)[:, : x.shape[1]] + x[..., :1], (70,), 9),
    "doubled": Case(lambda x: conv(resized(x, (2 * x.shape[1],))), (40,), 7),
    "smoothed and halved": Case(lambda x: resized(conv(x), (x.shape[1] // 2,)), (80,), 9),
    "cubic": Case(lambda x: resized(conv(x, stride=2), x.shape[1:-1], "cubic"), (90,), 20),
    "scan over layers": Case(lambda x: lax.scan(lambda x, k: (dilax.dilated_conv(x, k, dilation=2) + 1, None), x, draw(3, 3, 2, 2) / 3)[0], (60,), 9),
    "image": Case(lambda x: conv(conv(x, dilation=2), (2, 5)), (31, 37), (8, 9), batch=2),
    "image, int": Case(lambda x: conv(conv(x, stride=(2, 1)), dilation=(1, 3)), (31, 37), 8),
    "image, one axis is short": Case(lambda x: conv(conv(x, stride=2), dilation=3), (45, 9), (8, 16)),
    "image, one axis is not divided": Case(lambda x: conv(x) + conv(x).mean(2, keepdims=True), (45, 29), (8, None)),
    "image, padding by axis": Case(lambda x: conv(x, dilation=(4, 1), padding=("CAUSAL", "VALID")), (45, 29), (8, 7)),
    "encoder": Case(encoder, (75, 90), (16, 24)),
    "segmenter": Case(segmenter, (128, 104), (16, 20), batch=2),
    "U-Net": Case(unet, (61, 90), (12, 16)),
    "volume": Case(lambda x: conv(conv(x, stride=2), features=2), (13, 18, 15), (4, 7, 6)),
    "integers": Case(lambda x: jnp.argmax(conv(x), -1, keepdims=True), (31, 37), 8),
}  # fmt: skip
each_case = pytest.mark.parametrize("name", CASES)


def equal(actual: Any, expected: Any) -> None:
    assert isinstance(actual, np.ndarray)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@functools.cache
def whole(name: str) -> tuple[Any, Any, Any]:
    """Return a case's image, the compiled function of the whole image, and its output, which several tests use."""
    case = CASES[name]
    image, fn = draw(case.batch, *case.space, case.channels, seed=9), jax.jit(case.fn)
    return image, fn, fn(image)


@each_case
def test_equals_the_whole_image(name):
    case, shapes = CASES[name], []
    image, fn, expected = whole(name)

    def traced(x):
        shapes.append(x.shape)
        return case.fn(x)

    run = dilax.tiled(traced, case.tile)
    equal(run(image), expected)
    # The last shape traced is that of the windows, and no other shape is compiled.
    assert np.prod(shapes[-1]) < image.size
    traces = len(shapes)
    equal(run(image[:, ::-1]), fn(image[:, ::-1]))
    assert len(shapes) == traces


LAYERS = st.sampled_from(
    [
        *(lambda x, options=(taps, s, d, p): conv(x, options[0], stride=options[1], dilation=options[2], padding=options[3])
          for taps in (2, 3) for s, d in ((1, 1), (1, 3), (2, 1), (3, 2)) for p in ("SAME", "VALID", "CAUSAL", "TORCH")),
        lambda x: conv(x, padding_mode="reflect", dilation=2),
        lambda x: dilax.max_pool(x, 2),
        lambda x: dilax.avg_pool(x, 3, stride=2, padding="SAME", count_padding=False),
        lambda x: transposed(x, 3, stride=2),
        lambda x: jnp.repeat(x, 2, 1),
        lambda x: resized(x, (2 * x.shape[1],)),
        lambda x: x[:, 2:],
        lambda x: x[:, :-3],
        lambda x: conv(transposed(conv(x, stride=2), stride=2, output_size=x.shape[1:-1])) + conv(x),
    ]
)  # fmt: skip


def check_network(layers, length, tile):
    def fn(x):
        for layer in layers:
            x = layer(x)
        return x

    image = draw(1, length, 2)
    try:
        shape = jax.eval_shape(fn, image).shape
    except UserError:  # the output is empty
        hypothesis.reject()
    hypothesis.assume(0 < shape[1] < 1000)
    equal(dilax.tiled(fn, tile)(image), jax.jit(fn)(image))


@hypothesis.settings(derandomize=True, deadline=None, database=None, max_examples=12)
@hypothesis.given(st.lists(LAYERS, min_size=1, max_size=4), st.integers(60, 200), st.integers(5, 40))
def test_random_networks(layers, length, tile):
    check_network(layers, length, tile)


@each_case
def test_mean_of_the_whole_image(name):
    case = CASES[name]
    image, _, y = whole(name)
    mean = dilax.tiled(case.fn, case.tile, reduce="mean", batch_size=3)(image)
    assert mean.shape == (y.shape[0], y.shape[-1])
    np.testing.assert_allclose(mean, np.asarray(y, np.float64).mean(tuple(range(1, y.ndim - 1))), rtol=1e-5, atol=1e-5)


def test_windows_at_once():
    image = draw(2, 41, 37, 2)
    expected = jax.jit(encoder)(image)
    for batch_size in (2, 4, 100):
        equal(dilax.tiled(encoder, 8, batch_size=batch_size)(image), expected)


def test_trees():
    def fn(x):
        return {"maps": (conv(x), segmenter(x)), "mask": encoder(x)[..., :1] > 0}

    image = draw(1, 96, 72, 2)
    expected = jax.device_get(jax.jit(fn)(image))
    run = dilax.tiled(fn, 16)
    actual = run(image)
    jax.tree.map(equal, actual, expected)
    out = jax.tree.map(lambda y: np.zeros(y.shape, y.dtype), actual)
    assert run(image, out=out) is out
    jax.tree.map(np.testing.assert_array_equal, out, actual)
    means = dilax.tiled(fn, 16, reduce="mean")(image)
    jax.tree.map(lambda mean, y: np.testing.assert_allclose(mean, np.mean(y, (1, 2), np.float64), rtol=1e-5, atol=1e-6), means, expected)


def test_files(tmp_path):
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint8, (1, 60, 50, 3))
    image[:] = np.random.default_rng(0).integers(0, 256, image.shape)
    fn = lambda x: conv(x.astype(jnp.float32) / 255, stride=2)  # noqa: E731
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float16, (1, 30, 25, 3))
    assert dilax.tiled(fn, 16)(image, out=out) is out
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), jax.jit(fn)(np.asarray(image)), atol=1e-3)
    equal(dilax.tiled(fn, 16)(jnp.asarray(image)), jax.jit(fn)(np.asarray(image)))


def test_half_precision():
    fn = lambda x: conv(x, stride=2).astype(jnp.bfloat16)  # noqa: E731
    image = draw(1, 300, 2)
    actual, expected = dilax.tiled(fn, 16)(image), jax.jit(fn)(image)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(np.float32), expected.astype(jnp.float32), rtol=0.01)
    mean = dilax.tiled(fn, 16, reduce="mean")(image)
    assert mean.dtype == jnp.bfloat16
    np.testing.assert_allclose(mean.astype(np.float32), np.asarray(expected, np.float64).mean(1), rtol=0.01)


def test_other_sizes_share_the_program():
    shapes = []

    def fn(x):
        shapes.append(x.shape)
        return conv(x, stride=2)

    run = dilax.tiled(fn, 16)
    for length in (61, 101):
        equal(run(image := draw(1, length, 2)), jax.jit(lambda x: conv(x, stride=2))(image))
    # Each length is analysed; all windows have one other shape.
    assert len({shape for shape in shapes if shape[1] < 61}) == 1


@pytest.fixture
def short_lengths(monkeypatch):
    """Analyse long axes at a tenth of the usual lengths alone, so that a tenth of the samples is a long axis."""
    monkeypatch.setattr(tile_plans, "SHORT_LENGTHS", (288, 416, 441))
    monkeypatch.setattr(tile_plans, "MAX_LENGTH", 500)


def test_common_output_strides_divide_a_short_length():
    for stride in (*(2**i for i in range(7)), 320, 441, 512):
        assert any(length % stride == 0 for length in tile_plans.SHORT_LENGTHS)


def test_long_recordings_are_analysed_at_a_short_length(short_lengths):
    lengths = []

    def fn(x):
        lengths.append(x.shape[1])
        return resized(conv(x, stride=16), (x.shape[1],))

    run = dilax.tiled(fn, 512)
    assert run(draw(1, 16 * 199, 1)).shape == (1, 16 * 199, 3)
    # Only the shape of the whole output is computed.
    assert lengths.count(16 * 199) == 1
    with pytest.raises(UserError, match="depends on the position along spatial axis 0, of 3185 samples"):
        run(draw(1, 16 * 199 + 1, 1))


@pytest.mark.parametrize(("length", "stride"), [(602, 7), (1003, 17)])
def test_strides_that_divide_no_short_length(length, stride, short_lengths):
    fn = lambda x: conv(x, stride=stride) if stride == 17 else dilax.resize(conv(x, stride=stride), x.shape[1:-1])  # noqa: E731
    image = draw(1, length, 1)
    equal(dilax.tiled(fn, 100)(image), jax.jit(fn)(image))


# Functions that treat a position apart which none of the short lengths has.
LATE = {
    "another factor": lambda x: jnp.where((jnp.arange(x.shape[1]) >= 7000)[None, :, None], 2 * x, x),
    "joined": lambda x: jnp.concatenate([x[:, :7000], 2 * x[:, 7000:]], 1),
    "joined, wide": lambda x: jnp.concatenate([x[:, :20000], 2 * x[:, 20000:]], 1),
    "one sample": lambda x: x.at[:, 7000].set(0.0),
}


@pytest.mark.parametrize("name", LATE)
def test_positions_beyond_the_short_lengths(name):
    with pytest.raises(UserError, match="depends on the position along spatial axis 0, of 40000 samples"):
        dilax.tiled(LATE[name], 1500, check=False)(draw(1, 40000, 1))


def test_neighbouring_pieces_of_a_long_recording():
    fn = lambda x: jnp.concatenate([x[:, :9000], x[:, 9000:]], 1) + conv(x, dilation=40)[..., :1]  # noqa: E731
    image = draw(1, 40000, 1)
    equal(dilax.tiled(fn, 5000, check=False)(image), jax.jit(fn)(image))


def test_images_no_larger_than_the_tile_run_whole():
    fn = lambda x: jnp.cumsum(x, 1) - x.mean((1, 2), keepdims=True)  # noqa: E731
    image = draw(1, 30, 20, 2)
    equal(dilax.tiled(fn, (30, 32))(image), jax.jit(fn)(image))
    equal(dilax.tiled(fn, (None, None))(image), jax.jit(fn)(image))
    np.testing.assert_allclose(dilax.tiled(fn, 64, reduce="mean")(image), np.asarray(fn(image)).mean((1, 2)), rtol=1e-5, atol=1e-5)


class Pooling(nn.Module):
    """Image pooling parallel to a dilated branch, as in DeepLabV3; the pooled mean may be passed in."""

    @nn.compact
    def __call__(self, x, *, image_mean=None, only_features=False):
        y = nn.relu(dilax.DilatedConv(6, (3, 3), stride=(4, 4))(x))
        if only_features:
            return y
        mean = y.mean((1, 2)) if image_mean is None else jnp.asarray(image_mean)
        pooled = jnp.broadcast_to(nn.relu(nn.Dense(5)(mean))[:, None, None], (*y.shape[:-1], 5))
        y = jnp.concatenate([dilax.DilatedConv(5, (3, 3), dilation=3)(y), pooled], -1)
        return resized(nn.Dense(3)(y), x.shape[1:-1])


def test_image_pooling_in_two_passes():
    model, image = Pooling(), draw(2, 96, 80, 2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: draw(*leaf.shape, seed=leaf.size) / np.sqrt(leaf.size // leaf.shape[-1]), shapes)
    expected: Any = jax.jit(model.apply)(variables, image)
    with pytest.raises(UserError, match="depends on all 96 samples of spatial axis 0, more than tile=20"):
        dilax.tiled(lambda x: model.apply(variables, x), 20)(image)
    mean = dilax.tiled(lambda x: model.apply(variables, x, only_features=True), 20, reduce="mean")(image)
    assert mean.shape == (2, 6)
    for batch_size in (1, 3):
        equal(dilax.tiled(lambda x: model.apply(variables, x, image_mean=mean), 20, batch_size=batch_size)(image), expected)


MEMORY = """
import resource, sys
import jax, numpy as np
import dilax
from dilax.functional import dilated_conv

kernels = [np.random.default_rng(i).normal(size=(3, 3, a, b)).astype(np.float32) / 12 for i, (a, b) in enumerate([(1, 16), (16, 16), (16, 1)])]

def fn(x):
    for kernel, dilation in zip(kernels, (1, 4, 8)):
        x = dilated_conv(x, kernel, dilation=dilation, lowering="lax")
    return x

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

run = dilax.tiled(fn, 128)
print(peak())
for side in (384, 768, 1536):
    image = np.ones((1, side, side, 1), np.float32)
    out = np.zeros_like(image)
    assert run(image, out=out)[0, -1, -1, 0] != 0
    print(peak() - image.nbytes - out.nbytes)
    del image, out
image = jax.ShapeDtypeStruct((1, side, side, 1), np.float32)
print(jax.jit(fn).lower(image).compile().memory_analysis().temp_size_in_bytes)
"""


def test_memory_stays_flat(root):
    text = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=root).stdout
    before, *peaks, buffers = (int(line) / 2**20 for line in text.splitlines())
    print(f"MiB: {before:.0f} at first; 1x, 4x and 16x the image: {peaks}; buffers without tiling: {buffers:.0f}")
    # The program and its windows fit into 200 MiB; the buffers for the whole image do not.
    assert max(peaks) - before < 200 < buffers
    assert max(peaks) - peaks[0] < 20


FLOAT: Any = 1.5
ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
coordinates = np.linspace(0, 1, 60, dtype=np.float32)[None, :, None]
ERRORS = {
    "tile of 0": (lambda: dilax.tiled(jnp.tanh, 0), "tile=0 is not valid; give a positive int, or a tuple with one per spatial axis (None: not divided)."),
    "tile of a float": (lambda: dilax.tiled(jnp.tanh, (FLOAT, 2)), "tile=(1.5, 2) is not valid"),
    "batch_size 0": (lambda: dilax.tiled(jnp.tanh, batch_size=0), "tiled: batch_size=0 is below 1; use 1 or more."),
    "reduce": (lambda: dilax.tiled(jnp.tanh, reduce="max"), 'reduce=\'max\' is unknown; use "mean", or None for the outputs themselves.'),
    "check": (lambda: dilax.tiled(jnp.tanh, check=cast(Any, 1)), "tiled: check=1 is not a bool; use True or False."),
    "tile of another rank": (
        lambda: dilax.tiled(conv)(ones(1, 60, 2)),
        "tile=(512, 512) has 2 entries for the 1 spatial axes of an image of shape (1, 60, 2); give an int or one entry per axis.",
    ),
    "no space": (lambda: dilax.tiled(conv, 9)(ones(60, 2)), "an image of shape (60, 2) is not (batch, *space, channels); add the missing axes."),
    "global": (
        lambda: dilax.tiled(lambda x: x - x.mean(1, keepdims=True), 9)(ones(1, 60, 2)),
        "fn depends on all 60 samples of spatial axis 0, more than tile=9 (a global mean, attention, a dense layer); pass the mean from a "
        'first pass with reduce="mean" to fn, or use None for that axis of tile.',
    ),
    "global, an output of several": (
        lambda: dilax.tiled(lambda x: (x, jnp.cumsum(x, 2)), 9)(ones(1, 60, 50, 2)),
        "output 1 of fn depends on all 50 samples of spatial axis 1",
    ),
    "no space in the output": (
        lambda: dilax.tiled(lambda x: x.mean(1), 9)(ones(1, 60, 2)),
        "fn maps (1, 60, 2) to (1, 2); it must keep the number of axes: (batch, *space, channels).",
    ),
    "coordinates": (
        lambda: dilax.tiled(lambda x: x + coordinates, 9)(ones(1, 60, 2)),
        "fn depends on the position along spatial axis 0, of 60 samples (a resize to a size that is not a multiple, coordinates, wrap-around "
        "padding); crop or pad the image to a multiple of the output stride, or use None for that axis of tile.",
    ),
    "wrapping around": (lambda: dilax.tiled(lambda x: conv(x, padding_mode="wrap"), 9)(ones(1, 60, 2)), "fn depends on the position along spatial axis 0"),
    "not a multiple of the stride": (
        lambda: dilax.tiled(segmenter, 9)(ones(1, 96, 175, 2)),
        "fn depends on the position along spatial axis 1, of 175 samples",
    ),
    "a fixed output size": (
        lambda: dilax.tiled(lambda x: resized(conv(x), (120,)), 9)(ones(1, 60, 2)),
        "fn maps a window of shape (1, 13, 2) to (1, 120, 3), not to (1, 26, 3), as its result for the whole image implies; the size of its "
        "output must follow from the size of its input along the same axis.",
    ),
    "axes swapped": (
        lambda: dilax.tiled(lambda x: conv(x).transpose(0, 2, 1, 3), 9)(ones(1, 60, 60, 2)),
        "fn maps a window of shape (1, 11, 60, 2) to (1, 60, 11, 3), not to (1, 11, 60, 3)",
    ),
    "a fixed input size": (
        lambda: dilax.tiled(lambda x: conv(x.reshape(1, 60, 2)), 9)(ones(1, 60, 2)),
        "fn accepts the image, but not a part of it of shape (1, 11, 2): cannot reshape array of shape (1, 11, 2)",
    ),
    "a dilation that depends on the size": (
        lambda: dilax.tiled(lambda x: conv(x, dilation=1 + (x.shape[1] > 50)), 9)(ones(1, 60, 2)),
        "along spatial axis 0, the receptive field is ReceptiveField(size=5, stride=1, offset=-2, coverage=0.6) in the image, but "
        "ReceptiveField(size=3, stride=1, offset=-1) in a window of 13 samples; use a larger tile, and let every size in fn follow from that "
        "of its input.",
    ),
    "independent of the image": (
        lambda: dilax.tiled(lambda x: (x, jnp.ones((1, 60, 2))), 9)(ones(1, 60, 2)),
        "output 1 of fn does not depend on the image; return it from another function.",
    ),
    "unsupported operation": (lambda: dilax.tiled(lambda x: jnp.linalg.qr(x)[0], 9)(ones(1, 60, 2)), "'qr' is not supported"),
    "out of another shape": (
        lambda: dilax.tiled(conv, 9)(ones(1, 60, 2), out=ones(1, 60, 2)),
        "out has shape (1, 60, 2) and dtype float32, but fn returns (1, 60, 3) of dtype float32; give an array of that shape and dtype.",
    ),
    "out of integers": (lambda: dilax.tiled(conv, 9)(ones(1, 60, 2), out=np.ones((1, 60, 3), int)), "out has shape (1, 60, 3) and dtype int64"),
    "out of another tree": (lambda: dilax.tiled(conv, 9)(ones(1, 60, 2), out=[ones(1, 60, 3)]), "out has the structure PyTreeDef([*])"),
    "out and reduce": (
        lambda: dilax.tiled(conv, 9, reduce="mean")(ones(1, 60, 2), out=ones(1, 3)),
        'out cannot be combined with reduce="mean", whose results are small; omit out.',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, words = ERRORS[name]
    with pytest.raises(UserError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
