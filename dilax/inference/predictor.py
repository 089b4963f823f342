"""What predictions of all kinds have in common: the model, its variables, its data, and how it runs on a batch."""

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

from dilax.errors import UserError
from dilax.pooling import pool_sequence
from dilax.pruning import unpruned
from dilax.spec import DataSpec


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A trained model, and how it runs on a batch; for its attributes see `Inference`."""

    model: nn.Module
    variables: VariableDict
    spec: DataSpec
    pool: str = "last"
    task: str = ""
    image_size: int = 0

    def __repr__(self) -> str:
        """Say what the model is for, without its numbers."""
        names = self.spec.outputs
        shown = ", ".join(map(repr, names if len(names) <= 10 else names[:9])) + (f", and {len(names) - 9} more" if len(names) > 10 else "")
        return (
            f"Inference(task={self.task!r}, model={type(self.model).__name__}, data={self.spec.name!r}, "
            f"input_shape={self.spec.input_shape}, outputs=({shown}))"
        )

    def _check_task(self, method: str, *tasks: str) -> None:
        """Refuse a method that does not fit what the model was trained for."""
        if self.task and self.task not in tasks:
            raise UserError(
                f"{method}: this run was trained for {self.task}, not for {' or '.join(tasks)}; use predict, which fits every run."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes or, in other tasks, of the outputs; the same as `spec.outputs`."""
        return self.spec.outputs

    def padded(self, values: np.ndarray, *, name: str = "the input") -> tuple[np.ndarray, np.ndarray]:
        """Standardise a sequence, codes (time,) or floats (time, channels), as in training and pad it to the length of the run.

        Args:
            values: The sequence.
            name: What messages call it.

        Returns:
            The model input (1, length, ...) and the number of its valid steps (1,).

        Raises:
            UserError: if it is empty or longer than the run takes, or has other channels.
        """
        length, *channels = self.spec.input_shape
        if list(values.shape[1:]) != channels:
            raise UserError(f"{name} has {values.shape[1]} channels, and the run was trained on {channels[0]}; give the same channels.")
        if not len(values):
            raise UserError(f"{name} has no steps; give at least one.")
        if len(values) > length:
            raise UserError(
                f"{name} has {len(values)} steps, and the run takes {length}; shorten it, or train with a larger config.sequence.length."
            )
        scaled = values if self.spec.symbols else self.spec.scale(values)
        return np.pad(scaled, ((0, length - len(values)), *((0, 0) for _ in channels)))[None], np.array([len(values)], np.int32)

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
        # The variables are an argument, so that they do not become constants of the compiled program.
        return jax.jit(lambda variables, x, length: dataclasses.replace(self, variables=variables).apply(x, length=length))

    def apply(self, x: jax.Array, *, length: jax.Array | None = None) -> Any:
        """Run the model on a batch as a pure function, for JAX to transform or export; arguments and result as `outputs`."""
        arguments: dict[str, Any] = self.arguments(x, length)
        return self.model.apply(self.variables, **arguments, train=False)

    def arguments(self, x: jax.Array, length: jax.Array | None = None) -> dict[str, jax.Array]:
        """Return the arguments of the model for a batch, by name; arguments as `outputs`."""
        if x.dtype == jnp.uint8 and not self.spec.symbols:
            x = self.spec.prepare(x)
        return model_arguments(self.model, x, length)


def model_arguments(model: nn.Module, x: jax.Array, length: jax.Array | None = None) -> dict[str, jax.Array]:
    """Return {"x": x in the model's dtype}, with the "mask" of the valid steps where `length` is given and the model takes a mask."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(getattr(model, "dtype", None) or jnp.float32)
    if length is None or not takes_mask(type(unpruned(model))):
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
