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
from train.data.augment import to_float
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
            batch: "image" uint8 (batch, height, width, channels), "label" int32 (batch,) or uint8 (batch, height, width); under pmap
                this device's share.
            key: Of the run; what is random in step s depends on it and on s alone.

        Returns:
            The state after, and sums over the batch ("loss", "accuracy", "count", of the augmented images) with the "gradient_norm" and
            the "parameter_norm" after the step.
        """
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        count = batch["label"].shape[0]
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * count
        images, targets, labels = self.task.augment(augment_key, batch["image"], batch["label"], first)
        parts = self.config.optim.accumulate
        batch_stats: Any = state.batch_stats
        grads: Any = None
        sums: Any = None
        # A Python loop: XLA's CPU backend runs convolutions inside lax.scan about ten times slower, even if it is unrolled.
        for i, part_key in enumerate(jax.random.split(dropout_key, parts)):
            # Interleaved, so that every part spans all devices.
            part = [a[i::parts] for a in (images, targets, labels)]
            batch_stats, *new = self._gradient(state.params, batch_stats, part[0], part[1], part[2], part_key)
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
        sums = self.task.sums(self.logits(variables, batch["image"]), batch["label"], batch["mask"])
        return sums if self.axis_name is None else lax.psum(sums, self.axis_name)

    def logits(self, variables: Any, images: Any) -> Any:
        """Map uint8 images to logits, with nothing random; at several scales, to the logarithms of mean probabilities."""

        def run(images: Any) -> Any:
            return self.model.apply(variables, images, train=False)

        images = self.seen(to_float(images))
        if self.scales == (1.0,) and not self.flip:
            return run(images)
        return segmentation.averaged(run, images, self.scales, self.flip)

    def seen(self, images: jax.Array) -> jax.Array:
        """Map float images in -1..1 to what the model sees: standardised by config.data.mean and std, in config.dtype."""
        given = self.config.data.mean, self.config.data.std
        if any(given):
            mean, std = (jnp.broadcast_to(jnp.asarray(values or (0.5,), images.dtype), images.shape) for values in given)
            images = ((images + 1) / 2 - mean) / std
        return images.astype(self.config.dtype)

    def _gradient(self, params: Any, batch_stats: Any, images: Any, targets: Any, labels: Any, key: Any) -> tuple[Any, Any, Any]:
        """Return the new running statistics, the gradient of the mean loss, and the sums, of one part of a batch."""

        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            outputs, updates = self.model.apply(variables, self.seen(images), train=True, mutable=["batch_stats"], rngs={"dropout": key})
            losses = self.task.losses(outputs, targets)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            return losses.mean(), (updates.get("batch_stats", batch_stats), logits, losses)

        grads, (batch_stats, logits, losses) = jax.grad(loss_fn, has_aux=True)(params)
        right = self.task.right(logits, labels)
        return batch_stats, grads, {"loss": losses.sum(), "accuracy": right.sum(), "count": jnp.float32(len(labels))}

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
