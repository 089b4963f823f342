"""The training step and the evaluation step: pure functions of (state, batch, key). They know the contract of a task, and no task."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.typing import VariableDict
from jax import lax
from ml_collections import ConfigDict

import dilax
from dilax.blocks import BATCH_MOMENTUM
from train.interception import frozen_statistics, recomputed
from train.optim import ema, matches
from train.tasks.base import Batch, Loss, Task


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
        step: Steps taken, int32.
        params: Parameters, float32.
        collections: The other variables of the model, such as {"batch_stats": ...}.
        opt_state: State of the optimiser.
        average: Moving average of the parameters, or None if the run keeps none.
        average_stats: Moving average, with the same decay, of the statistics of the batches, or None.
    """

    step: jax.Array
    params: Any
    collections: dict[str, Any]
    opt_state: Any
    average: Any
    average_stats: Any

    def variables(self) -> dict[str, Any]:
        """Return what is evaluated and kept: the averaged parameters and statistics if there are any, and the other collections."""
        return {"params": self.params, **self.collections} if self.average is None else self.averaged(self.collections)

    def averaged(self, collections: dict[str, Any]) -> dict[str, Any]:
        """Return the averages, and the other collections as they are given."""
        return {"params": self.average, **collections, "batch_stats": self.average_stats}


@dataclasses.dataclass(frozen=True)
class Devices:
    """How a step that runs on a share of the batch combines what the devices have; by default the step sees the whole batch.

    Attributes:
        sum: Tree -> its sum over the devices.
        mean: Tree -> its mean over the devices.
        first: Size of a share -> position of its first example in the whole batch.
        gather: Tree -> the same, every array of it complete on every device, for use by the model.
        spread: Augmented batch -> the same, perhaps with its space spread over devices.
    """

    sum: Callable[[Any], Any] = lambda tree: tree
    mean: Callable[[Any], Any] = lambda tree: tree
    first: Callable[[int], Any] = lambda size: 0
    gather: Callable[[Any], Any] = lambda tree: tree
    spread: Callable[[Batch], Batch] = lambda batch: batch


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network that a run is distilled from.

    Attributes:
        model: The Flax module.
        task: What it was trained for; prepares batches as in its training.
        variables: Its variables, on the host.
        checksum: Of the variables.
        origin: What it is, in words.
    """

    model: nn.Module
    task: Task
    variables: Any
    checksum: int
    origin: str

    def logits(self, variables: VariableDict, batch: Batch) -> jax.Array:
        """Return the logits of the classes for an augmented batch, in evaluation."""
        logits, _ = self.task.class_logits(self.task.outputs(self.model, variables, batch), batch)
        return lax.stop_gradient(logits)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The pure functions of a run.

    Attributes:
        model: The Flax module.
        task: Its loss and metrics.
        tx: Its optimiser.
        config: The whole config.
        devices: How shares of a batch are combined.
        teacher: The network that the run is distilled from, or None. Its variables are an argument of `train`, so that they are not copied
            into the compiled program as constants.
    """

    model: nn.Module
    task: Task
    tx: optax.GradientTransformation
    config: ConfigDict
    devices: Devices = Devices()
    teacher: Teacher | None = None

    def init(self, variables: VariableDict) -> TrainState:
        """Return the state of step 0."""
        params = variables["params"]
        # A copy: donating the state must not free one buffer twice.
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        average, average_stats = None, None
        if self.config.optim.ema_decay:
            average, average_stats = jax.tree.map(jnp.copy, (params, collections.get("batch_stats", {})))
        return TrainState(jnp.zeros((), jnp.int32), params, collections, self.tx.init(params), average, average_stats)

    def train(self, state: TrainState, batch: Batch, key: jax.Array, teacher: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one step.

        Args:
            state: The state before.
            batch: What the task learns from, arrays by name; perhaps the share of this device.
            key: Random key of the run; what is random in step s depends on it and on s alone.
            teacher: The variables of the teacher, if there is one.

        Returns:
            The state after, and sums over the augmented batch ("loss", the task's measures, and the "count" that they are divided by) with
            the "gradient_norm" of the trained parameters and the "parameter_norm" after the step.
        """
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        size = len(jax.tree.leaves(batch)[0])
        augmented = self.devices.spread(self.task.augment(augment_key, batch, self.devices.first(size)))
        parts = self.config.optim.accumulate
        collections = state.collections
        grads: Any = None
        total: Any = None
        seen: list[Any] = []
        # A Python loop: XLA's CPU backend runs convolutions inside lax.scan about ten times slower, even if it is unrolled.
        for i, part_key in enumerate(jax.random.split(loss_key, parts)):
            # Interleaved, so that every part spans all devices. XLA moves the rows of a slice with a step between devices, and not these.
            part = jax.tree.map(lambda a, i=i: a.reshape(-1, parts, *a.shape[1:])[:, i], augmented)
            gradient, result = self._gradient(state, collections, part, part_key, size // parts, self.taught(teacher, part))
            seen.append(batch_statistics(collections, result.collections))
            collections, sums = result.collections, {**result.sums, "count": result.count}
            grads, total = (gradient, sums) if grads is None else jax.tree.map(jnp.add, (grads, total), (gradient, sums))
        grads, total = self.devices.sum((grads, total))
        collections, seen = self.devices.mean((collections, seen))
        # The gradients are of sums over fixed numbers of examples: here they are divided, once, by what the task counts. Where there is
        # nothing to count, as in a batch without any object, they are divided by 1.
        scale = (size // parts) / jnp.maximum(total["count"], 1.0)
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        after = self._updated(state, grads, collections, seen)
        # A step may overflow though its loss did not.
        norms = {"gradient_norm": optax.tree.norm(grads), "parameter_norm": optax.tree.norm(after.params)}
        return after, {**total, **norms}

    def evaluate(self, variables: VariableDict, batch: Batch) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Return the sums over the examples that batch["mask"] counts, and what the task keeps of each example."""
        with dilax.use_lowering(self.config.lowering):
            sums, kept = self.task.evaluate(self.model, self.devices.gather(variables), self.devices.spread(batch))
        return self.devices.sum(sums), kept

    def taught(self, teacher: Any, batch: Batch) -> jax.Array | None:
        """Return the logits of the teacher with its variables for a part of an augmented batch; None if there is no teacher."""
        if self.teacher is None:
            return None
        with dilax.use_lowering(self.config.lowering):
            return self.teacher.logits(teacher, batch)

    def _gradient(
        self, state: TrainState, collections: Any, batch: Batch, key: jax.Array, scale: int, taught: jax.Array | None
    ) -> tuple[Any, Loss]:
        """Return the gradient of the summed loss of one part of a batch, over a fixed `scale` that keeps it in range, and the loss."""
        return jax.grad(self.objective, has_aux=True)(state.params, state, collections, batch, key, scale, taught)

    def objective(
        self, params: Any, state: TrainState, collections: Any, batch: Batch, key: jax.Array, scale: int, taught: jax.Array | None = None
    ) -> tuple[Any, Loss]:
        """Return what a step differentiates with respect to `params`, the summed loss of a part of a batch over `scale`; and the loss.

        `taught` is what `taught` returned for that part.
        """
        average = None if state.average is None else self.devices.gather(state.averaged(collections))
        frozen = matches(self.config.frozen, state.params, "frozen")
        # XLA then leaves out the backward pass of frozen layers that no trained layer is beneath.
        params = self.devices.gather(jax.tree.map(lambda leaf, hit: lax.stop_gradient(leaf) if hit else leaf, params, frozen))
        lowering, quantised = dilax.use_lowering(self.config.lowering), dilax.use_quantisation(self.config.quantise or None)
        with lowering, quantised, frozen_statistics(self.config.frozen), recomputed(self.config.remat):
            loss = self.task.loss(self.model, {"params": params, **collections}, batch, key, average=average, teacher=taught)
        return loss.sums["loss"] / scale, loss

    def _updated(self, state: TrainState, grads: Any, collections: Any, seen: list[Any]) -> TrainState:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its int32 count
            updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = state.average, state.average_stats
        if state.average is not None:
            stats = jax.tree.map(lambda *parts: sum(parts) / len(parts), *seen)
            averages = ema(averages, (params, stats), self.config.optim.ema_decay, state.step)
        return TrainState(state.step + 1, params, collections, opt_state, *averages)


def batch_statistics(before: dict[str, Any], after: dict[str, Any]) -> Any:
    """Return the statistics of a batch, from the running statistics before and after it.

    The running statistics lag behind the parameters by some ten steps, and their average would lag further behind that of the parameters.
    Where they were kept, as in frozen normalisations, the result equals them to the bit.
    """
    old, new = (collections.get("batch_stats", {}) for collections in (before, after))
    return jax.tree.map(lambda old, new: old + (new - old) / (1 - BATCH_MOMENTUM), old, new)
