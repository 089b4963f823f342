"""The error texts of dilax: what was given, why it is wrong, what to do instead."""

import jax
import jax.numpy as jnp
import pytest

import dilax
from dilax import blocks, models
from dilax.errors import UserError

KEY = jax.random.key(0)
X1, X2 = jnp.ones((2, 9, 3)), jnp.ones((2, 9, 8, 3))
K1, K2 = jnp.ones((3, 3, 4)), jnp.ones((3, 3, 3, 4))


def conv(x=X2, kernel=K2, **options):
    return lambda: dilax.dilated_conv(x, kernel, **options)


def transpose(x, kernel, **options):
    return lambda: dilax.dilated_conv_transpose(x, kernel, **options)


def layer(module, x=X2):
    return lambda: module.init(KEY, x)


def model(name, x=X2, train=False, **fields):
    return lambda: models.create(name, **fields).init({"params": KEY, "dropout": KEY}, x, train=train)


PADDINGS = "('SAME', 'VALID', 'CAUSAL', 'TORCH')"
CASES = {
    "dilation 0": (conv(dilation=0), "dilated_conv: dilation=0 is below 1; use 1 or more."),
    "negative stride": (conv(stride=(1, -1)), "dilated_conv: stride=(1, -1) is below 1; use 1 or more."),
    "stride of a float": (conv(stride=1.5), "dilated_conv: stride=1.5 is not an integer; give an int or a tuple of 2 ints."),
    "too many dilations": (
        conv(dilation=(1, 2, 3)),
        "dilated_conv: dilation=(1, 2, 3) has length 3, but there are 2 spatial axes; give an int or a tuple of 2 ints.",
    ),
    "groups that do not divide": (
        conv(groups=2),
        "dilated_conv: 3 input channels cannot be split into groups=2; choose a divisor of 3.",
    ),
    "groups that do not divide the output": (
        conv(kernel=jnp.ones((3, 3, 1, 4)), groups=3),
        "dilated_conv: 4 output channels cannot be split into groups=3; choose a divisor of 4.",
    ),
    "kernel of another rank": (
        conv(kernel=K1),
        "dilated_conv: a kernel of shape (3, 3, 4) is for 1-D inputs, but x of shape (2, 9, 8, 3) is 2-D; make the kernel (*kernel_size, c_in // groups, c_out).",
    ),
    "kernel of other channels": (
        conv(kernel=jnp.ones((3, 3, 2, 4))),
        "dilated_conv: a kernel of shape (3, 3, 2, 4) does not fit 3 input channels with groups=1; its second-to-last axis must be 3.",
    ),
    "x without channels": (
        conv(x=jnp.ones((2, 9))),
        "dilated_conv: x of shape (2, 9) must be (batch, *space, channels) with 1, 2 or 3 spatial axes.",
    ),
    "integers": (
        conv(x=jnp.ones((2, 9, 8, 3), jnp.int32)),
        "dilated_conv: x has dtype int32; convert it to a floating-point dtype such as float32 first.",
    ),
    "zero-length input": (
        conv(x=X2[:, :0]),
        "dilated_conv: the input has an axis of length 0; every spatial axis needs at least one sample.",
    ),
    "zero-length kernel": (
        conv(kernel=K2[:0]),
        "dilated_conv: the channels of x (2, 9, 8, 3) and all axes of kernel (0, 3, 3, 4) must be at least 1; remove the axis of length 0.",
    ),
    "VALID with a kernel wider than the input": (
        conv(padding="VALID", dilation=5),
        "dilated_conv: the kernel spans 11 samples, which is more than an axis of 9 has with padding='VALID'; "
        "use a smaller kernel_size or dilation, or padding='SAME'.",
    ),
    "misspelt padding": (
        conv(padding="same"),
        f"dilated_conv: padding='same' is not valid; use one of {PADDINGS}, an int, or a (lo, hi) pair per axis. Did you mean \"SAME\"?",
    ),
    "negative padding": (conv(padding=-1), "dilated_conv: padding=-1 is negative; use 0 or more, and crop the input instead."),
    "padding per axis": (
        conv(padding=("SAME",)),
        "dilated_conv: padding=('SAME',) has length 1, but there are 2 spatial axes; give one entry per axis.",
    ),
    "a flat pair in 1-D": (
        conv(X1, K1, padding=(2, 0)),
        "dilated_conv: padding=(2, 0) has length 2, but there is 1 spatial axis; give one entry per axis. In 1-D, write a pair as padding=((2, 0),).",
    ),
    "padding of a float": (
        conv(padding=0.5),
        f"dilated_conv: padding=0.5 is not valid; use one of {PADDINGS}, an int, or one of these per axis.",
    ),
    "unknown padding mode": (
        conv(padding_mode="circular"),
        "dilated_conv: padding_mode='circular' is unknown; use one of ('zeros', 'reflect', 'edge', 'wrap').",
    ),
    "unknown lowering": (
        conv(lowering="lux"),
        "dilated_conv: lowering='lux' is unknown; use one of ('auto', 'lax', 'taps', 'split', 'products', 'patches', 'planes', 'onednn'). "
        'Did you mean "lax"?',
    ),
    "depthwise kernel": (
        lambda: dilax.depthwise_conv(X2, jnp.ones((3, 3, 1, 4))),
        "depthwise_conv: a kernel of shape (3, 3, 1, 4) does not fit 3 input channels; its last two axes must be (1, 3 * multiplier).",
    ),
    "pointwise kernel wider than 1": (
        lambda: dilax.separable_conv(X2, jnp.ones((3, 3, 1, 3)), K2),
        "separable_conv: a pointwise_kernel of shape (3, 3, 3, 4) must have kernel size 1; make its leading axes of length 1.",
    ),
    "transposed kernel": (
        transpose(X2, K2),
        "dilated_conv_transpose: a kernel of shape (3, 3, 3, 4) does not fit 3 input channels; its last two axes must be (c_out // groups, 3).",
    ),
    "transposed output_size": (
        transpose(jnp.ones((2, 5, 4)), K1, stride=2, output_size=12),
        "dilated_conv_transpose: a convolution maps output_size=(12,) to (6,), but x has (5,); choose another size, or None.",
    ),
    "transposed to nothing": (
        transpose(jnp.ones((2, 1, 4)), K1, padding=2),
        "dilated_conv_transpose: padding=2 leaves an output of size (-1,); use less padding or give output_size.",
    ),
    "unknown platform": (
        lambda: dilax.select_lowering(dilax.ConvPlan(1, (9,), 3, 4, (3,), (1,), ((1, 1),), (1,), 1, "float32"), platform="gpu"),
        "select_lowering: platform='gpu' is unknown; use one of ('cpu', 'cuda', 'rocm', 'tpu', 'other'). Did you mean \"tpu\"?",
    ),
    "an int on an image": (
        layer(dilax.DilatedConv(4, 3)),
        "DilatedConv: kernel_size=3 does not say how many spatial axes there are; "
        "write kernel_size=(3, 3) for images, (3,) for sequences, or kernel_size=3, rank=2.",
    ),
    "rank 4": (layer(dilax.DilatedConv(4, 3, rank=4)), "DilatedConv: rank=4 is not supported; use 1, 2 or 3."),
    "kernel of rank 4": (
        layer(dilax.DepthwiseConv((3, 3, 3, 3))),
        "DepthwiseConv: kernel_size=(3, 3, 3, 3) has 4 spatial axes; give 1, 2 or 3.",
    ),
    "an input without space": (
        layer(dilax.SeparableConv(4, (3, 3)), jnp.ones((9, 3))),
        "SeparableConv: kernel_size=(3, 3) needs x (*batch, *space, channels) with 2 spatial axes, got shape (9, 3).",
    ),
    "module groups": (
        layer(dilax.DilatedConv(4, (3, 3), groups=2)),
        "DilatedConv: 3 input channels cannot be split into groups=2; choose a divisor of 3.",
    ),
    "module features": (
        layer(dilax.DilatedConvTranspose(4, (3, 3), groups=3)),
        "DilatedConvTranspose: 4 features cannot be split into groups=3; choose a divisor of 4.",
    ),
    "no features": (layer(dilax.DilatedConv(0, (3, 3))), "DilatedConv: features=0 is below 1; use 1 or more."),
    "one dilation": (
        layer(dilax.MultiDilationConv(4, (3, 3), dilations=2)),  # type: ignore[arg-type]
        "MultiDilationConv: dilations=2 must be a tuple, one per branch, such as (1, 2, 4).",
    ),
    "unknown merge": (
        layer(dilax.MultiDilationConv(4, (3, 3), dilations=(1, 2), merge="add")),
        "MultiDilationConv: merge='add' is unknown; use one of ('concat', 'sum').",
    ),
    "branches of several sizes": (
        layer(dilax.MultiDilationConv(4, (3, 3), dilations=(1, 2), padding="VALID")),
        "MultiDilationConv: padding='VALID' gives the dilations (1, 2) outputs of different sizes; use 'SAME'.",
    ),
    "unknown model": (
        model("dilated_cnnn"),
        "models.create: unknown model 'dilated_cnnn'; dilax.models.names() lists them. Did you mean \"dilated_cnn\"?",
    ),
    "unknown field": (
        model("dilated_cnn_rgb", clases=3),
        "models.create: 'dilated_cnn_rgb' has no field 'clases'; it has num_classes, dropout, norm, dtype. Did you mean \"num_classes\"?",
    ),
    "layers of several lengths": (
        model("dilated_cnn", features=(8, 8)),
        "DilatedCNN: features=(8, 8), dilations=(1, 2, 1, 2, 2) and pools=(1, 2, 1, 2, 1) must have equal lengths.",
    ),
    "no image": (
        model("dilated_cnn", X1),
        "DilatedCNN: x of shape (2, 9, 3) must be (batch, height, width, channels); add the missing axes.",
    ),
    "pool wider than the map": (
        model("dilated_cnn", features=(8,), dilations=(1,), pools=(9,)),
        "DilatedCNN: a pool of 9 does not fit a map of (9, 8); use an int from 1, for none, to the size of the map.",
    ),
    "unknown head": (model("dilated_cnn", head="mean"), "DilatedCNN: head='mean' is unknown; use one of ('global', 'flatten')."),
    "stages of several lengths": (
        model("separable_cnn", blocks=(1,)),
        "SeparableCNN: features=(64, 128, 256) and blocks=(1,) must have equal lengths, one entry per stage, and dilations=(1, 2) must not be empty.",
    ),
    "unknown norm": (
        model("dilated_cnn", norm="bath"),
        "DilatedCNN: norm='bath' is unknown; use one of ('batch', 'group', 'layer', 'global', 'cumulative', 'none', 'frozen'). Did you mean \"batch\"?",
    ),
    "unknown activation": (
        model("dilated_cnn", activation="rulu"),
        "DilatedCNN: activation='rulu' is unknown; use one of ('relu', 'relu6', 'gelu', 'silu', 'hard_silu', 'elu', 'tanh'). Did you mean \"relu\"?",
    ),
    "unknown gate": (
        lambda: blocks.SqueezeExcite(gate="soft").init(jax.random.key(0), jnp.ones((1, 4, 4, 4))),
        "SqueezeExcite: gate='soft' is unknown; use one of ('sigmoid', 'hard_sigmoid').",
    ),
    "dropout of 1": (model("dilated_cnn", dropout=1.0), "DilatedCNN: dropout=1.0 is not a valid probability; use 0 <= dropout < 1."),
    "batch statistics of one value": (
        lambda: blocks.Norm().apply({"batch_stats": {}}, jnp.ones((1, 1, 1, 4)), train=True, mutable=["batch_stats"]),
        "Norm: an input of shape (1, 1, 1, 4) has a single value per channel, for which batch statistics are undefined; use a larger batch, or norm='group' or 'frozen'.",
    ),
    "unknown operation": (
        lambda: dilax.receptive_field(lambda x: jnp.linalg.qr(x)[0], X1),
        "receptive_field: the operation 'qr' is not supported; analyse the parts before and after it.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_text(name):
    call, text = CASES[name]
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value) == text


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


# The words of other libraries for the arguments of ours: the call with them, and ours.
WORDS = {
    "lax": (lambda **words: dilax.dilated_conv(X2, K2, **words), {"window_strides": 2, "rhs_dilation": 2, "feature_group_count": 1}),
    "flax, depthwise": (lambda **words: dilax.depthwise_conv(X2, K2, **words), {"strides": 2, "kernel_dilation": 2}),
    "flax, separable": (lambda **words: dilax.separable_conv(X2, K2, K2, **words), {"strides": 2, "kernel_dilation": 2}),
    "flax, transposed": (lambda **words: dilax.dilated_conv_transpose(X2, K2, **words), {"strides": 2, "kernel_dilation": 2}),
    "flax, module": (lambda **words: dilax.DilatedConv(3, (3, 3), **words), {"strides": 2, "kernel_dilation": 2, "feature_group_count": 1}),
    "keras, module": (lambda **words: dilax.SeparableConv(kernel_size=(3, 3), **words), {"filters": 2, "strides": 2, "dilation_rate": 2}),
    "torch, module": (lambda **words: dilax.DilatedConvTranspose(kernel_size=(3, 3), **words), {"out_channels": 2, "bias": False}),
    "pooling": (lambda **words: dilax.max_pool(X2, (2, 2), **words), {"strides": 2, "dilation_rate": 2}),
    "mean pooling": (lambda **words: dilax.avg_pool(X2, **words), {"window_shape": (2, 2)}),
}
OURS = {
    "strides": "stride",
    "window_strides": "stride",
    "rhs_dilation": "dilation",
    "kernel_dilation": "dilation",
    "dilation_rate": "dilation",
    "filters": "features",
    "out_channels": "features",
    "feature_group_count": "groups",
    "bias": "use_bias",
    "window_shape": "window",
}


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, (_, words) in WORDS.items() for word in words])
def test_words_of_other_libraries(name, word):
    call, words = WORDS[name]
    with pytest.raises(UserError, match=rf"^\w+: {word}= is called {OURS[word]}= here; write {OURS[word]}=.+\.$"):
        call(**{word: words[word]})


def test_a_word_of_nobody_is_a_type_error():
    for call, _ in WORDS.values():
        with pytest.raises(TypeError, match="misspelt"):
            call(misspelt=1)


@pytest.mark.parametrize(
    ("padding", "hint"),
    [
        ("REFLECT", ' What the padding is filled with is an argument of its own: padding_mode="reflect".'),
        ("circular", ' What the padding is filled with is an argument of its own: padding_mode="wrap".'),
        ("replicate", ' What the padding is filled with is an argument of its own: padding_mode="edge".'),
        ("same", ' Did you mean "SAME"?'),
        ("vaild", ' Did you mean "VALID"?'),
        ("full", ""),
    ],
)
@pytest.mark.parametrize("per_axis", [False, True])
def test_words_of_padding(padding, hint, per_axis):
    given = (padding, "SAME") if per_axis else padding
    with pytest.raises(UserError) as error:
        conv(padding=given)()
    assert str(error.value) == (
        f"dilated_conv: padding={given!r} is not valid; use one of {PADDINGS}, an int, or a (lo, hi) pair per axis.{hint}"
    )


MODULE_CALLS = {
    "receptive_field": lambda module: dilax.receptive_field(module, X2),
    "effective_receptive_field": lambda module: dilax.effective_receptive_field(module, X2, key=KEY),
    "tiled": lambda module: dilax.tiled(module),
    "check_causal": lambda module: dilax.check_causal(module, X1),
}


@pytest.mark.parametrize("name", MODULE_CALLS)
def test_a_module_is_not_a_function(name):
    for module, train in ((models.create("dilated_cnn"), ", train=False"), (dilax.DilatedConv(3, (3,)), "")):
        with pytest.raises(UserError) as error:
            MODULE_CALLS[name](module)
        assert str(error.value) == (
            f"{name}: a {type(module).__name__} is a module, and a function of one array is needed; "
            f"give lambda x: model.apply(variables, x{train}), with variables from model.init or dilax.load."
        )
