"""Losses that optax lacks, as pure functions: of dense prediction, and of waveforms.

Those of dense prediction take logits (batch, *space, classes) and labels (batch, *space), integers, and give one value per example. A
pixel whose label is `ignored_label` counts nowhere; an example of such pixels alone has the loss 0, and the gradient 0. Any other label
that is no class makes the loss NaN.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError

IGNORED = 255
_FLOOR = 1e-8  # share of the energy below which a part of a waveform counts as nothing: 80 dB


def pixel_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, class_weights: Sequence[float] | jax.Array | None = None, ignored_label: int = IGNORED
) -> jax.Array:
    """Cross-entropy in nats, the weighted mean over the pixels of each example: sum of w[label] * loss over sum of w[label].

    Args:
        logits: (batch, *space, classes).
        labels: (batch, *space), integers.
        class_weights: (classes,), one weight for each; None weighs all alike.
        ignored_label: Label of pixels that do not count.

    Returns:
        (batch,), float32.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> logits = jnp.array([[[0.0, 0.0], [5.0, 0.0]]])
        >>> pixel_cross_entropy(logits, jnp.array([[1, 255]])).tolist()
        [0.6931471824645996]
    """
    log_p, truth, weights = _pixels("pixel_cross_entropy", logits, labels, class_weights, ignored_label)
    return _mean(-_of_label(log_p, truth), weights)


def focal_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | jax.Array | None = None,
    ignored_label: int = IGNORED,
) -> jax.Array:
    """Cross-entropy in which sure pixels count less: -(1 - p)^gamma log p, p the probability of the right class.

    Args:
        logits: As `pixel_cross_entropy`; so are labels, class_weights (the paper's alpha) and ignored_label.
        labels: (batch, *space), integers.
        gamma: How fast sure pixels fade; 0 is the cross-entropy.
        class_weights: (classes,) or None.
        ignored_label: Label of pixels that do not count.

    Returns:
        (batch,), float32: weighted means as `pixel_cross_entropy`.

    Raises:
        UserError: if the shapes do not fit, or gamma is negative.

    Example:
        >>> focal_loss(jnp.zeros((1, 1, 2)), jnp.array([[1]]), gamma=2.0).tolist()  # a quarter of log 2
        [0.1732867956161499]

    Reference:
        Lin et al. 2017, "Focal loss for dense object detection", section 3.2, arXiv:1708.02002; with a softmax over the classes.
    """
    if not gamma >= 0:
        raise UserError(f"focal_loss: gamma={gamma} must be 0 or more.")
    log_p, truth, weights = _pixels("focal_loss", logits, labels, class_weights, ignored_label)
    log_p = _of_label(log_p, truth)
    # Kept off 0, where a power below 1 has no derivative.
    unsure = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return _mean(-(unsure**gamma) * log_p, weights)


def dice_loss(logits: jax.Array, labels: jax.Array, *, ignored_label: int = IGNORED) -> jax.Array:
    """1 - 2 sum(p g) / (sum(p) + sum(g)) of each class, p its probability and g 1 at its pixels; the mean over the classes of the example.

    It weighs a class of few pixels like one of many. A class without pixels in an example is left out there: the pixels predicted as
    that class lower the overlap of those they belong to.

    Args:
        logits: As `pixel_cross_entropy`; so are labels and ignored_label.
        labels: (batch, *space), integers.
        ignored_label: Label of pixels that do not count.

    Returns:
        (batch,), float32, from 0 to 1.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> dice_loss(jnp.zeros((1, 2, 2)), jnp.array([[1, 1]])).tolist()  # 1 - 2 * 1 / (1 + 2)
        [0.3333333134651184]

    Reference:
        Milletari et al. 2016, arXiv:1606.04797, section 3, for each class, and with sums where they have sums of squares.
    """
    log_p, truth, weights = _pixels("dice_loss", logits, labels, None, ignored_label)
    space = tuple(range(1, labels.ndim))
    p = jnp.where(weights[..., None] == 0, 0.0, jnp.exp(log_p) * weights[..., None])
    overlap, predicted, true = jnp.sum(p * truth, space), jnp.sum(p, space), jnp.sum(truth, space)
    present = true > 0
    dice = 2 * overlap / jnp.where(present, predicted + true, 1.0)
    return jnp.sum(jnp.where(present, 1 - dice, 0.0), -1) / jnp.maximum(jnp.sum(present.astype(jnp.float32), -1), 1.0)


def median_frequency_weights(pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Weights that balance rare classes: the median of the frequencies over the frequency of each class.

    The frequency of a class is its number of pixels over the number of (not ignored) pixels of the images that have it.

    Args:
        pixels: (classes,), pixels of each class over all images.
        seen: (classes,), pixels of the images that have the class.

    Returns:
        (classes,), float32; 1 for a class without pixels.

    Example:
        >>> median_frequency_weights(np.array([10, 40, 0]), np.array([100, 100, 0])).tolist()
        [2.5, 0.625, 1.0]

    Reference:
        Eigen & Fergus 2015, section 6.3.2, arXiv:1411.4734; Badrinarayanan et al. 2015 (SegNet) use it for CamVid.
    """
    found = pixels > 0
    frequency = pixels[found] / seen[found]
    weights = np.ones(len(pixels), np.float32)
    weights[found] = np.median(frequency) / frequency if found.any() else 1
    return weights


def _pixels(
    caller: str, logits: jax.Array, labels: jax.Array, class_weights: Sequence[float] | jax.Array | None, ignored_label: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return log-probabilities and one-hot labels (batch, *space, classes), and the weight (batch, *space) of each pixel, 0 if ignored."""
    if logits.shape[:-1] != labels.shape or labels.ndim < 2:
        raise UserError(
            f"{caller}: logits of shape {logits.shape} and labels of shape {labels.shape} do not fit; "
            "give (batch, *space, classes) and (batch, *space)."
        )
    classes = logits.shape[-1]
    counts = labels != ignored_label
    truth = jnp.where(counts[..., None], jax.nn.one_hot(labels, classes), 0.0)
    weights = counts.astype(jnp.float32)
    if class_weights is not None:
        each = jnp.asarray(class_weights, jnp.float32)
        if each.shape != (classes,):
            raise UserError(f"{caller}: class_weights of shape {each.shape} do not fit {classes} classes; give one weight for each.")
        weights = jnp.einsum("...c,c->...", truth, each)
    wrong = counts & ((labels < 0) | (labels >= classes))
    return jax.nn.log_softmax(logits.astype(jnp.float32)), truth, jnp.where(wrong, jnp.nan, weights)


def _of_label(log_p: jax.Array, truth: jax.Array) -> jax.Array:
    """The log-probability of each pixel's own class; 0 where it is ignored, whatever stands there."""
    return jnp.sum(jnp.where(truth > 0, log_p, 0.0), -1)


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted mean over all axes but the first; 0 where the weights are."""
    space = tuple(range(1, values.ndim))
    total = weights.sum(space)
    return jnp.sum(values * weights, space) / jnp.where(total > 0, total, 1.0)


def logistic_mixture_loss(outputs: jax.Array, x: jax.Array, *, levels: int = 65536) -> jax.Array:
    """Negative log-likelihood of the samples of a waveform under mixtures of logistics, each over the width of one level.

    Args:
        outputs: (*batch, 3 * mixtures): logits of the mixture, means, and logarithms of the scales, one after the other.
        x: (*batch,) in -1..1, of which the outermost levels hold what is beyond.
        levels: Of the waveform: 65536 for 16 bits.

    Returns:
        (*batch,) in nats.

    Reference:
        Salimans et al. 2017, arXiv:1701.05517, section 2.1; for audio van den Oord et al. 2018, arXiv:1711.10433, section 3.1.
    """
    logits, means, log_scales = jnp.split(outputs.astype(jnp.float32), 3, axis=-1)
    log_scales = jnp.maximum(log_scales, -14.0)  # far below a level of 16 bits
    x = jnp.broadcast_to(x.astype(jnp.float32)[..., None], means.shape)
    half, inverse = 1 / (levels - 1), jnp.exp(-log_scales)
    above, below = (x + half - means) * inverse, (x - half - means) * inverse
    # log(sigmoid(a) - sigmoid(b)), with no difference of numbers that are nearly the same.
    middle = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + jnp.log(-jnp.expm1(-2 * half * inverse))
    inside = jnp.where(x <= -1 + half, jax.nn.log_sigmoid(above), jnp.where(x >= 1 - half, jax.nn.log_sigmoid(-below), middle))
    return -jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + inside, axis=-1)


def si_sdr(estimate: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Scale-invariant signal-to-distortion ratio: the energy of the part of an estimate along its target over that of the rest, in dB.

    10 log10(|a t|^2 / |e - a t|^2), a = <e, t> / <t, t>, of waveforms less their means

    It lies between -80 and 80: parts with less than 1e-8 of the energy count as so much. Where either waveform is silent it is -80,
    without a gradient.

    Args:
        estimate: (batch, time, sources), floats.
        target: Of the same shape.
        mask: bool (batch, time), False behind the end of a shorter waveform; what stands there counts nowhere.

    Returns:
        (batch, sources), float32.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> target = jnp.array([1.0, -1.0, 1.0, -1.0]).reshape(1, 4, 1)
        >>> round(float(si_sdr(target + jnp.array([0.1, 0.1, -0.1, -0.1]).reshape(1, 4, 1), target)[0, 0]), 3)
        20.0

    Reference:
        Le Roux et al. 2019, arXiv:1811.02508, equation 3.
    """
    real = _real("si_sdr", estimate, target, mask)
    e, t = _unit(estimate, real), _unit(target, real)
    along = jnp.sum(e * t, axis=1, keepdims=True)
    rest = jnp.sum(jnp.square(e - along * t), axis=1)
    silent = jnp.sum(jnp.square(e), axis=1) == 0
    ratio = (jnp.square(along[:, 0]) + _FLOOR) / (jnp.where(silent, 1.0, rest) + _FLOOR)
    return 10 * jnp.log10(ratio)


def separation_loss(estimates: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The mean of -`si_sdr` over the sources, in the order of the estimates that fits best.

    All orders are tried: for a handful of sources.

    Args:
        estimates: (batch, time, sources), floats, in any order.
        targets: Of the same shape.
        mask: As `si_sdr`.

    Returns:
        (batch,), float32, in dB.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> targets = jnp.array([[1.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [-1.0, -1.0]])[None]
        >>> separation_loss(3 * targets[..., ::-1], targets).round().tolist()
        [-80.0]

    Reference:
        Yu et al. 2017, arXiv:1607.00325 (permutation-invariant training), with the loss of Luo & Mesgarani 2019, arXiv:1809.07454.
    """
    _real("separation_loss", estimates, targets, mask)
    batch, time, sources = targets.shape
    pairs = (batch, time, sources, sources)
    e, t = (jnp.broadcast_to(x, pairs).reshape(batch, time, -1) for x in (estimates[..., None], targets[:, :, None]))
    ratios = si_sdr(e, t, mask).reshape(batch, sources, sources)
    orders = np.array(list(itertools.permutations(range(sources))))
    return -ratios[:, np.arange(sources)[None], orders].mean(-1).max(-1)


def _real(caller: str, estimate: jax.Array, target: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return which samples count, (batch, time, 1), once the shapes are known to fit."""
    if estimate.ndim != 3 or estimate.shape != target.shape:
        raise UserError(
            f"{caller}: estimates of shape {estimate.shape} and targets of shape {target.shape} must both be (batch, time, sources)."
        )
    if mask is not None and mask.shape != target.shape[:2]:
        raise UserError(f"{caller}: a mask of shape {mask.shape} does not fit waveforms of shape {target.shape}; give (batch, time).")
    return jnp.ones((*target.shape[:2], 1), bool) if mask is None else mask[..., None]


def _unit(x: jax.Array, real: jax.Array) -> jax.Array:
    """Waveforms less their means, with energy 1 or 0."""
    x = jnp.where(real, x.astype(jnp.float32), 0.0)
    mean = x.sum(1, keepdims=True) / jnp.maximum(real.sum(1, keepdims=True), 1).astype(jnp.float32)
    x = jnp.where(real, x - mean, 0.0)
    energy = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    return x / jnp.sqrt(jnp.where(energy > 0, energy, 1.0))
