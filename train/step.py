"""The training step and the evaluation step: pure functions of (state, batch, key)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from train import segmentation
from train.optim import ema, matches
from train.tasks import Task


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
        step: Steps taken, int32.
        params: Parameters, float32.
        batch_stats: Running statistics of the normalisations.
        opt_state: The optimiser's.
        ema_params: Moving average of the parameters, or None when it is off.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any

    def variables(self) -> dict[str, Any]:
        """What is evaluated and kept: the averaged parameters if there are any, and the running statistics."""
        return {"params": self.params if self.ema_params is None else self.ema_params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Steps:
    """The pure functions of a run.

    Attributes:
        model: The Flax module.
        task: Its loss and metrics.
        tx: Its optimiser.
        config: The whole config.
        axis_name: The device axis under pmap, else None.
        scales: In segmentation, sizes of the image, 1 its own, at which evaluation runs the model; the probabilities are averaged.
        flip: Whether evaluation also runs it on mirrored images.
    """

    model: nn.Module
    task: Task
    tx: optax.GradientTransformation
    config: ConfigDict
    axis_name: str | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def init(self, variables: Any) -> TrainState:
        """Return the state of step 0."""
        params = variables["params"]
        # A copy: donating the state must not free one buffer twice.
        average = jax.tree.map(jnp.copy, params) if self.config.optim.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), self.tx.init(params), average)

    def train(self, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one step.

        Args:
            state: Before.
            batch: What the task learns from, such as "image" uint8 (batch, height, width, channels) and "label" int32 (batch,) or uint8
                (batch, height, width); under pmap this device's share.
            key: Of the run; what is random in step s depends on it and on s alone.

        Returns:
            The state after, and sums over the augmented batch ("loss", the task's measures, "count") with the "gradient_norm" and the
            "parameter_norm" after the step.
        """
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        count = batch["label"].shape[0]
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * count
        augmented = self.task.augment(augment_key, batch, first)
        parts = self.config.optim.accumulate
        batch_stats: Any = state.batch_stats
        grads: Any = None
        sums: Any = None
        # A Python loop: XLA's CPU backend runs convolutions inside lax.scan about ten times slower, even if it is unrolled.
        for i, part_key in enumerate(jax.random.split(dropout_key, parts)):
            # Interleaved, so that every part spans all devices.
            inputs, targets = jax.tree.map(lambda a, i=i: a[i::parts], augmented)
            batch_stats, *new = self._gradient(state.params, batch_stats, inputs, targets, part_key)
            grads, sums = new if grads is None else jax.tree.map(jnp.add, [grads, sums], new)
        grads = jax.tree.map(lambda g: g / parts, grads)
        if self.axis_name is not None:
            grads, batch_stats = lax.pmean((grads, batch_stats), self.axis_name)
            sums = lax.psum(sums, self.axis_name)
        after = self._updated(state, grads, batch_stats)
        # A step may overflow though its loss did not.
        norms = {"gradient_norm": optax.tree.norm(grads), "parameter_norm": optax.tree.norm(after.params)}
        return after, {**sums, **norms}

    def evaluate(self, variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return sums over the examples of a batch that its "mask" counts."""
        sums = self.task.sums(self.outputs(variables, batch), batch)
        return sums if self.axis_name is None else lax.psum(sums, self.axis_name)

    def outputs(self, variables: Any, batch: dict[str, Any]) -> Any:
        """Map a batch to what the model makes of it, with nothing random; at several scales, to the logarithms of mean probabilities."""
        inputs = self.task.inputs(batch)

        def run(x: Any) -> Any:
            return self.model.apply(variables, **{**inputs, "x": x}, train=False)

        if self.scales == (1.0,) and not self.flip:
            return run(inputs["x"])
        return segmentation.averaged(run, inputs["x"], self.scales, self.flip)

    def _gradient(self, params: Any, batch_stats: Any, inputs: Any, targets: Any, key: Any) -> tuple[Any, Any, Any]:
        """Return the new running statistics, the gradient of the mean loss, and the sums, of one part of a batch."""

        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            outputs, updates = self.model.apply(variables, **inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key})
            losses = self.task.losses(outputs, targets)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            return losses.mean(), (updates.get("batch_stats", batch_stats), logits, losses)

        grads, (batch_stats, logits, losses) = jax.grad(loss_fn, has_aux=True)(params)
        measures = {name: values.sum() for name, values in self.task.measures(logits, targets).items()}
        return batch_stats, grads, {"loss": losses.sum(), **measures, "count": jnp.float32(len(losses))}

    def _updated(self, state: TrainState, grads: Any, batch_stats: Any) -> TrainState:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its int32 count
            updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema_params
        if average is not None:
            average = ema(average, params, self.config.optim.ema_decay, state.step)
        if self.config.frozen and batch_stats:
            keep = matches(self.config.frozen, batch_stats, None)
            batch_stats = jax.tree.map(lambda old, new, kept: old if kept else new, state.batch_stats, batch_stats, keep)
        return TrainState(state.step + 1, params, batch_stats, opt_state, average)
