"""The tasks of sequences: their losses and figures, in which no padded step counts.

Batches hold "input", (batch, time, channels) floats or (batch, time) codes, with "length" (batch,), the steps that are real; and "label",
a class (batch,), or for every step what it should give, with "counted", bool (batch, time), the steps that are scored.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dilax.losses import logistic_mixture_loss, separation_loss, si_sdr
from train.config import model_class, takes
from train.data.augment import seen, to_float

Batch = dict[str, Any]


def inputs(config: ConfigDict, batch: Batch) -> Batch:
    """Return the arguments of the model: x, and the mask of the real steps where it takes one."""
    x = batch["input"]
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(config.dtype)
    return {"x": x, **({"mask": real_steps(batch)} if takes(model_class(config), "mask") else {})}


def of_images(config: ConfigDict, batch: Batch, images: jax.Array) -> Batch:
    """Return a batch with the pixels of its images, floats in -1..1, as its sequences."""
    x = pixels(seen(config, images), config.sequence.permute)
    return {**batch, "input": x, "length": jnp.full(len(x), x.shape[1])}


def of_batch(config: ConfigDict, batch: Batch) -> Batch:
    """Return a batch of images as one of sequences, any other as it is."""
    return batch if "input" in batch else of_images(config, batch, to_float(batch["image"]))


def real_steps(batch: Batch) -> jax.Array:
    """Return bool (batch, time)."""
    return jnp.arange(batch["input"].shape[1])[None] < batch["length"][:, None]


def pixels(images: jax.Array, permuted: bool) -> jax.Array:
    """Map images (batch, height, width, channels) to the sequence of their pixels, row by row or in one fixed random order.

    Returns: (batch, height * width, channels).
    """
    x = images.reshape(images.shape[0], -1, images.shape[-1])
    return x[:, np.random.default_rng(0).permutation(x.shape[1])] if permuted else x


def pooled(outputs: jax.Array, length: jax.Array, pool: str) -> jax.Array:
    """Map outputs of every step (batch, time, classes) to (batch, classes); those of a whole sequence stay what they are.

    Args:
        outputs: Of the model.
        length: (batch,), steps that are real.
        pool: "last" real step, "mean" or "max" over the real steps.
    """
    if outputs.ndim == 2:
        return outputs
    if pool == "last":
        return jnp.take_along_axis(outputs, (length - 1)[:, None, None], axis=1)[:, 0]
    real = (jnp.arange(outputs.shape[1])[None] < length[:, None])[..., None]
    if pool == "max":
        return jnp.where(real, outputs, -jnp.inf).max(1)
    return jnp.where(real, outputs, 0.0).sum(1) / length[:, None].astype(outputs.dtype)


def step_losses(kind: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return (outputs (batch, time, n), labels) -> loss (batch, time) of each step.

    Args:
        kind: "categorical": nats of the code (batch, time) under n logits; "binary": nats of n bits (batch, time, n) under as many logits,
            added; "mse": mean of n squared errors; "mixture": nats of a sample (batch, time, 1) under logistics.
    """
    return {
        "categorical": lambda outputs, labels: optax.softmax_cross_entropy_with_integer_labels(outputs, labels),
        "binary": lambda outputs, labels: optax.sigmoid_binary_cross_entropy(outputs, labels.astype(outputs.dtype)).sum(-1),
        "mse": lambda outputs, labels: jnp.square(outputs - labels).mean(-1),
        "mixture": lambda outputs, labels: logistic_mixture_loss(outputs, labels[..., 0]),
    }[kind]


def example_means(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Return the mean (batch,) over the steps that count, 0 where none does; what stands at the others is not read."""
    return jnp.where(counted, values, 0.0).sum(1) / jnp.maximum(counted.astype(values.dtype).sum(1), 1)


def step_sums(kind: str, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Return sums over the steps that count, of examples that do: of the loss and, of codes, of right answers."""
    counted = batch["counted"] & batch["mask"][:, None]
    sums = {"loss": jnp.where(counted, step_losses(kind)(outputs, batch["label"]), 0.0).sum(), "count": counted.sum()}
    if kind == "categorical":
        sums["accuracy"] = (counted & (outputs.argmax(-1) == batch["label"])).sum()
    return sums


def step_measures(kind: str, outputs: jax.Array, targets: Batch) -> dict[str, jax.Array]:
    """Return what training logs beside the loss: of codes, the share of right answers of each example."""
    if kind != "categorical":
        return {}
    return {"accuracy": example_means((outputs.argmax(-1) == targets["label"]).astype(jnp.float32), targets["counted"])}


def step_figures(kind: str, name: str, sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Turn the sums of `step_sums` into means, the loss under `name`: one that begins with "bits" is in bits."""
    loss = float(sums["loss"]) / float(sums["count"])
    figures = {name: loss / math.log(2) if name.startswith("bits") else loss}
    if kind == "categorical":
        figures["accuracy"] = float(sums["accuracy"]) / float(sums["count"])
    return figures if name == "loss" else {**figures, "loss": loss}


def separation_sums(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Return sums over the examples that count: of the loss, and of that of the mixture itself in place of each source."""
    real, targets = real_steps(batch), batch["label"]
    mixture = jnp.broadcast_to(batch["input"], targets.shape)
    losses = {"loss": separation_loss(outputs, targets, real), "mixture": -si_sdr(mixture, targets, real).mean(-1)}
    return {**{name: jnp.where(batch["mask"], each, 0.0).sum() for name, each in losses.items()}, "count": batch["mask"].sum()}


def separation_figures(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Turn those sums into the mean SI-SDR, by how much that is above the mixture's, both in dB, and the loss."""
    loss, mixture = (float(sums[name]) / float(sums["count"]) for name in ("loss", "mixture"))
    return {"si_sdr": -loss, "si_sdr_improvement": mixture - loss, "loss": loss}
