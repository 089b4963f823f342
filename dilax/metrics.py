"""Metrics as sums and counts under a mask, added over batches and devices and divided once, at the end."""

import jax
import jax.numpy as jnp


def classification_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples that count.

    Args:
        logits: (batch, classes).
        labels: (batch,), integers.
        mask: (batch,), true where an example counts; a padded one does not.

    Returns:
        Sums of the cross-entropy in nats ("loss") and of right answers ("accuracy"), the "count" they are divided by, and the "confusion"
        matrix (classes, classes), rows the true class, columns the predicted one.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
        >>> sums = classification_sums(logits, jnp.array([0, 0, 1]), jnp.array([True, True, False]))
        >>> float(sums["accuracy"]), float(sums["count"]), sums["confusion"].tolist()
        (1.0, 2.0, [[1.0, 1.0], [0.0, 0.0]])
    """
    classes, weight = logits.shape[-1], mask.astype(jnp.float32)
    truth = jax.nn.one_hot(labels, classes)
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    # A padded row may hold anything, even infinities: it is replaced before it is summed.
    losses = jnp.where(mask, -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0), -1), 0.0)
    return {
        "loss": losses.sum(),
        "accuracy": jnp.sum(weight * jnp.sum(truth * predicted, -1)),
        "count": weight.sum(),
        "confusion": jnp.einsum("ni,nj,n->ij", truth, predicted, weight),
    }
