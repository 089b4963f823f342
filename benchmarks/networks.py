"""The networks of `benchmarks.train`, built with dilax and with Flax's own modules, and their training steps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.reference import in_float64
from dilax.blocks import ConvNormAct
from dilax.models.cnn import DilatedCNN, SeparableCNN

CLASSES = 10
RATE = 0.01
MOMENTUM = 0.9

# Runs one training step, blocks until it is done, and returns its loss.
Step = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A dense conv-norm-relu layer followed by pooling or, if residual, two separable conv-norm layers with a shortcut."""

    features: int
    dilation: int = 1
    stride: int = 1
    kernel: tuple[int, ...] = (3, 3)
    residual: bool = False
    pool: int = 1


@dataclasses.dataclass(frozen=True)
class Network:
    """One architecture: the model of dilax, and the stages from which it is rebuilt with Flax's own modules and with torch.

    Attributes:
        name: Its name.
        model: The model of dilax.
        stages: The same architecture as a list of stages.
        batch: Examples per step.
        shape: Shape of one example, (*space, channels).
    """

    name: str
    model: nn.Module
    stages: tuple[Stage, ...]
    batch: int
    shape: tuple[int, ...]

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return random examples (batch, *space, channels) and labels (batch,)."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, *self.shape)).astype(np.float32)
        return x, rng.integers(0, CLASSES, self.batch).astype(np.int32)


class CausalResidual(nn.Module):
    """Two normalised causal separable convolutions with a residual connection."""

    features: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, time, features) to the same shape."""
        shared: dict[str, Any] = dict(kernel_size=(3,), padding="CAUSAL", dilation=self.dilation, separable=True)
        y = ConvNormAct(self.features, **shared)(x, train=train)
        return nn.relu(x + ConvNormAct(self.features, activation="none", **shared)(y, train=train))


class TCN(nn.Module):
    """A causal network of dilated separable convolutions with a classifier (Bai et al. 2018, arXiv:1803.01271)."""

    features: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, time, channels) to logits (batch, CLASSES)."""
        x = ConvNormAct(self.features, (1,))(x, train=train)
        for dilation in self.dilations:
            x = CausalResidual(self.features, dilation)(x, train=train)
        return nn.Dense(CLASSES)(x.mean(1))


class FlaxLayer(nn.Module):
    """Convolution, normalisation and activation, built with Flax's own modules."""

    features: int
    kernel: tuple[int, ...]
    dilation: int = 1
    stride: int = 1
    separable: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, *space, c_in) to (batch, *space_out, features)."""
        channels, ones = x.shape[-1], (1,) * len(self.kernel)
        first: dict[str, Any] = dict(
            strides=self.stride,
            kernel_dilation=self.dilation,
            padding="CAUSAL" if len(self.kernel) == 1 else "SAME",
            use_bias=False,
        )
        if self.separable:
            x = nn.Conv(channels, self.kernel, feature_group_count=channels, **first)(x)
            x = nn.Conv(self.features, ones, use_bias=False)(x)
        else:
            x = nn.Conv(self.features, self.kernel, **first)(x)
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        return nn.relu(x) if self.relu else x


class FlaxNetwork(nn.Module):
    """A network built with Flax's own modules."""

    stages: tuple[Stage, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels) to logits (batch, CLASSES)."""
        del train  # always True
        for stage in self.stages:
            x = self._residual(stage, x) if stage.residual else FlaxLayer(stage.features, stage.kernel, stage.dilation, stage.stride)(x)
            if stage.pool > 1:
                x = nn.max_pool(x, (stage.pool,) * len(stage.kernel), (stage.pool,) * len(stage.kernel))
        return nn.Dense(CLASSES)(x.mean(range(1, x.ndim - 1)))

    def _residual(self, stage: Stage, x: jax.Array) -> jax.Array:
        y = FlaxLayer(stage.features, stage.kernel, stage.dilation, stage.stride, separable=True)(x)
        y = FlaxLayer(stage.features, stage.kernel, stage.dilation, separable=True, relu=False)(y)
        if x.shape != y.shape:
            x = FlaxLayer(stage.features, (1,) * len(stage.kernel), stride=stage.stride, relu=False)(x)
        return nn.relu(x + y)


def networks(batch: int | None) -> list[Network]:
    """Return the networks to measure, with the given batch size, or their own if it is None."""
    cnn, image = DilatedCNN(num_classes=CLASSES), (32, 32, 3)
    plain = tuple(Stage(f, dilation=cast(int, d), pool=p) for f, d, p in zip(cnn.features, cnn.dilations, cnn.pools))
    dilations = tuple(2**i for i in range(7))
    tcn = TCN(64, dilations)
    causal = (Stage(64, kernel=(1,)), *(Stage(64, dilation=d, kernel=(3,), residual=True) for d in dilations))
    return [
        separable("separable_cnn_small", SeparableCNN(CLASSES, 16, features=(32, 64, 128), blocks=(1, 1, 1), dilations=(2,)), batch),
        separable("separable_cnn", SeparableCNN(CLASSES, 32, features=(64, 128, 192), blocks=(2, 2, 2), dilations=(1, 2)), batch),
        Network("dilated_cnn", cnn, plain, batch or 128, image),
        Network("separable_tcn", tcn, causal, batch or 16, (1024, 16)),
    ]


def separable(name: str, model: SeparableCNN, batch: int | None) -> Network:
    """Return a separable network for images of 32x32x3 with its stages."""
    blocks = [(stage, block) for stage, count in enumerate(model.blocks) for block in range(count)]
    residuals = [
        Stage(
            model.features[stage],
            dilation=model.dilations[block % len(model.dilations)],
            stride=2 if stage > 0 and block == 0 else 1,
            residual=True,
        )
        for stage, block in blocks
    ]
    return Network(name, model, (Stage(model.stem_features), *residuals), batch or 128, (32, 32, 3))


# Parameters by path, in the order in which the network creates them, which is the same in all implementations.
Values = dict[tuple[str, ...], np.ndarray]


def initial_values(model: nn.Module, network: Network) -> tuple[Values, Any]:
    """Return random parameters from a fixed seed, and the initial running statistics."""
    paths: list[tuple[str, ...]] = []

    def init(key: jax.Array, x: jax.Array) -> Any:
        variables = model.init(key, x, train=True)
        paths.extend(flatten_dict(variables["params"]))  # in here, since eval_shape returns sorted dictionaries
        return variables

    x = jax.ShapeDtypeStruct((2, *network.shape), np.float32)
    shapes: Any = jax.eval_shape(init, jax.random.key(0), x)
    flat: dict[Any, Any] = flatten_dict(shapes["params"])
    running: dict[Any, Any] = flatten_dict(shapes["batch_stats"])
    rng = np.random.default_rng(1)
    values = {path: random_parameter(rng, path[-1], flat[path].shape) for path in paths}
    stats = {path: np.full(leaf.shape, path[-1] == "var", np.float32) for path, leaf in running.items()}
    return values, unflatten_dict(stats)


def random_parameter(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a kernel that preserves the variance, a scale near 1 or a bias near 0."""
    deviation = 0.1 if len(shape) == 1 else math.prod(shape[:-1]) ** -0.5
    return ((name == "scale") + deviation * rng.standard_normal(shape)).astype(np.float32)


def training_update(model: nn.Module) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any, Any], tuple[Any, jax.Array]]]:
    """Return two pure functions: (params, stats) to the initial state of training, and (state, x, labels) to the next one and the loss."""
    tx = optax.sgd(RATE, MOMENTUM)

    def update(state: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        params, stats, moments = state

        def loss_fn(params: Any) -> Any:
            logits, updates = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, moments = tx.update(grads, moments)
        return (optax.apply_updates(params, updates), stats, moments), loss

    return lambda params, stats: (params, stats, tx.init(params)), update


def jax_step(model: nn.Module, network: Network, values: Values, stats: Any) -> tuple[Step, Any]:
    """Return the training step of a Flax module, and its compiled program."""
    init, update = training_update(model)
    params, stats = jax.tree.map(jnp.array, (unflatten_dict(values), stats))
    state, (x, labels) = init(params, stats), map(jnp.asarray, network.data())
    run: Any = jax.jit(update, donate_argnums=0).lower(state, x, labels).compile()

    def step() -> float:
        nonlocal state
        state, loss = jax.block_until_ready(run(state, x, labels))
        return float(loss)

    return step, run


def reference_losses(network: Network, values: Values, stats: Any) -> list[float]:
    """Return the losses of two steps in float64; the second one depends on the gradients of the first."""
    init, update = training_update(network.model)

    def losses(params: Any, stats: Any, x: jax.Array, labels: jax.Array) -> list[jax.Array]:
        state, first = update(init(params, stats), x, labels)
        return [first, update(state, x, labels)[1]]

    return [float(loss) for loss in in_float64(losses, unflatten_dict(values), stats, *network.data())]
