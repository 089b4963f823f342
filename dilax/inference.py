"""A trained model with its variables and the description of its data: everything that a prediction needs."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from dilax import generate
from dilax.audio import mu_law_decode
from dilax.pooling import pool_sequence
from dilax.resizing import resize
from dilax.spec import DataSpec

POOLS = ("last", "mean", "max")


@dataclasses.dataclass(frozen=True)
class Inference:
    """A trained model that is ready to predict; `dilax.load` reads one from the folder of a run.

    Attributes:
        model: The Flax module.
        variables: Its parameters and running statistics.
        spec: What its data looks like.
        pool: How outputs at every step become one for the whole sequence; see `pool_steps`.
    """

    model: nn.Module
    variables: VariableDict
    spec: DataSpec
    pool: str = "last"

    def outputs(self, x: Any, *, length: Any = None) -> jax.Array:
        """Run the model on a batch, compiled once for each shape.

        Args:
            x: Images uint8 (batch, height, width, channels); or sequences, floats (batch, time, channels) standardised as `spec.scale`
                does, or codes (batch, time).
            length: Number of valid steps of each sequence, (batch,); None counts all of them.

        Returns:
            The outputs of the model, such as logits.
        """
        return self._run(self.variables, jnp.asarray(x), None if length is None else jnp.asarray(length))

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        def run(variables: VariableDict, x: jax.Array, length: jax.Array | None) -> Any:
            arguments: dict[str, Any] = self.arguments(x, length)
            return self.model.apply(variables, **arguments, train=False)

        return jax.jit(run)

    def arguments(self, x: jax.Array, length: jax.Array | None = None) -> dict[str, jax.Array]:
        """Return the arguments of the model for a batch, by name; arguments as `outputs`."""
        if x.dtype == jnp.uint8 and not self.spec.symbols:
            x = self.spec.prepare(x)
        return model_arguments(self.model, x, length)

    def probabilities(self, x: Any, *, length: Any = None) -> np.ndarray:
        """Return the probability of each class: (batch, classes), or (batch, height, width, classes) in segmentation."""
        outputs = self.outputs(x, length=length)
        if outputs.ndim == 3:
            steps = jnp.full(outputs.shape[0], outputs.shape[1], jnp.int32) if length is None else jnp.asarray(length)
            outputs = pool_steps(outputs, steps, self.pool)
        return np.asarray(jax.nn.softmax(outputs))

    def classify(self, x: Any, *, length: Any = None) -> list[tuple[str, float]]:
        """Return the most probable class of each example and its probability."""
        probabilities = self.probabilities(x, length=length)
        best = probabilities.argmax(-1)
        return [(self.spec.outputs[i], float(row[i])) for i, row in zip(best.tolist(), probabilities)]

    def segment(self, images: Any, *, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> np.ndarray:
        """Return the most probable class of each pixel.

        Args:
            images: uint8 (batch, height, width, channels).
            scales: Sizes at which the model runs, relative to the image; the probabilities are averaged.
            flip: Whether it also runs on mirrored images.

        Returns:
            uint8 (batch, height, width).
        """
        return np.asarray(self._segment(self.variables, jnp.asarray(images), tuple(scales), flip))

    @functools.cached_property
    def _segment(self) -> Callable[..., Any]:
        def run(variables: VariableDict, images: jax.Array, scales: tuple[float, ...], flip: bool) -> jax.Array:
            def logits(x: jax.Array) -> Any:
                return self.model.apply(variables, x=x, train=False)

            return average_views(logits, self.arguments(images)["x"], scales, flip).argmax(-1).astype(jnp.uint8)

        return jax.jit(run, static_argnums=(2, 3))

    def separate(self, mixture: np.ndarray) -> np.ndarray:
        """Separate a mixture (time,) into its sources (time, sources).

        The training loss does not see the scale of a source: each is scaled so that their sum comes closest to the mixture, within -1..1.
        """
        found = np.asarray(self.outputs(mixture[None, :, None], length=np.array([len(mixture)], np.int32))[0], np.float32)
        scaled = found * np.linalg.lstsq(found, mixture, rcond=None)[0]
        return scaled / max(1.0, float(np.abs(scaled).max()))

    def sample(
        self, prompt: np.ndarray, steps: int, *, seed: int = 0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ) -> np.ndarray:
        """Continue prompts, codes (batch, time) or waveforms (batch, time, 1), by `steps` samples; see `dilax.sample`."""
        options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        return np.asarray(self._sample(self.variables, jax.random.key(seed), jnp.asarray(prompt), steps, tuple(options.items())))

    @functools.cached_property
    def _sample(self) -> Callable[..., Any]:
        def run(variables: VariableDict, key: jax.Array, prompt: jax.Array, steps: int, options: tuple[tuple[str, Any], ...]) -> jax.Array:
            return generate.sample(self.model, variables, key, prompt, steps, **dict(options))

        return jax.jit(run, static_argnums=(3, 4))

    def forecast(self, values: np.ndarray, steps: int) -> np.ndarray:
        """Forecast the `steps` rows that follow a table (time, columns), in its own units; see `dilax.forecast`."""
        return self.spec.unscale(np.asarray(self._forecast(self.variables, jnp.asarray(self.spec.scale(values))[None], steps))[0])

    @functools.cached_property
    def _forecast(self) -> Callable[..., Any]:
        return jax.jit(lambda variables, x, steps: generate.forecast(self.model, variables, x, steps), static_argnums=2)

    def to_sound(self, values: np.ndarray) -> np.ndarray:
        """Map mu-law codes (batch, time), or samples (batch, time, 1), to waveforms (batch, time) in -1..1."""
        return np.asarray(mu_law_decode(jnp.asarray(values), levels=len(self.spec.symbols))) if values.ndim == 2 else values[..., 0]


def model_arguments(model: nn.Module, x: jax.Array, length: jax.Array | None = None) -> dict[str, jax.Array]:
    """Return {"x": x in the model's dtype}, with the "mask" of the valid steps where `length` is given and the model takes a mask."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(getattr(model, "dtype", None) or jnp.float32)
    if length is None or not takes_mask(type(model)):
        return {"x": x}
    return {"x": x, "mask": valid_steps(x.shape[1], length)}


def takes_mask(model: type[nn.Module]) -> bool:
    """Return whether the models of a class accept the mask of a padded batch."""
    return "mask" in inspect.signature(model.__call__).parameters


def valid_steps(steps: int, length: jax.Array) -> jax.Array:
    """Return which of `steps` are not padding, bool (batch, steps), for sequences of `length` (batch,)."""
    return jnp.arange(steps)[None] < length[:, None]


def pool_steps(outputs: jax.Array, length: jax.Array, pool: str) -> jax.Array:
    """Pool outputs at every step (batch, time, classes) into (batch, classes); outputs that are already pooled pass unchanged.

    Args:
        outputs: Outputs of a model.
        length: Number of valid steps of each sequence, (batch,).
        pool: "last", "mean" or "max", as `dilax.pooling.pool_sequence`.
    """
    return outputs if outputs.ndim == 2 else pool_sequence(outputs, kind=pool, mask=valid_steps(outputs.shape[1], length))


def average_views(logits: Callable[[jax.Array], jax.Array], images: jax.Array, scales: tuple[float, ...], flip: bool) -> jax.Array:
    """Return the logits of a segmentation model or, for several views of the image, the logarithm of their mean probabilities.

    Args:
        logits: Maps float images (batch, height, width, channels) to (batch, height, width, classes).
        images: Float (batch, height, width, channels).
        scales: Sizes at which the model runs, relative to the image; the probabilities are resized to the image, bilinearly.
        flip: Whether each scale also runs on the mirrored image.

    Returns:
        (batch, height, width, classes).
    """
    if scales == (1.0,) and not flip:
        return logits(images)
    shape = images.shape[1:3]
    total: Any = 0.0
    for scale in scales:
        resized = resize(images, (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))))
        for mirrored in (False, True)[: 1 + flip]:
            view = resized[:, :, ::-1] if mirrored else resized
            p = jax.nn.softmax(logits(view).astype(jnp.float32))
            total += resize(p[:, :, ::-1] if mirrored else p, shape)
    return jnp.log(jnp.maximum(total / (len(scales) * (1 + flip)), 1e-30))
