"""Losses that optax lacks, as pure functions: for dense prediction, for labelled sequences and for waveforms.

The losses for dense prediction take logits (batch, *space, classes) and integer labels (batch, *space), and return one value per example.
Pixels labelled `ignored_label` do not contribute; an example of such pixels alone has loss 0 and gradient 0. Other labels that are not a
class make the loss NaN.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dilax import arguments
from dilax.errors import UserError, shown

IGNORED = 255
_FLOOR = 1e-8  # the share of the energy below which part of a waveform counts as zero: 80 dB


def pixel_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, class_weights: Sequence[float] | jax.Array | None = None, ignored_label: int = IGNORED
) -> jax.Array:
    """Return the cross-entropy per example, averaged over its pixels, in nats.

    With class weights w, the average is sum(w[label] * loss) / sum(w[label]) over the pixels.

    Args:
        logits: (batch, *space, classes).
        labels: (batch, *space), integers.
        class_weights: (classes,), one weight per class; None weights all classes equally.
        ignored_label: Label of the pixels that do not contribute.

    Returns:
        (batch,), float32.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> logits = jnp.array([[[0.0, 0.0], [5.0, 0.0]]])
        >>> pixel_cross_entropy(logits, jnp.array([[1, 255]])).tolist()
        [0.6931471824645996]
    """
    log_p, one_hot, weights = _prepare_pixels("pixel_cross_entropy", logits, labels, class_weights, ignored_label)
    return _weighted_mean(-_log_p_of_label(log_p, one_hot), weights)


def focal_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | jax.Array | None = None,
    ignored_label: int = IGNORED,
) -> jax.Array:
    """Return the focal loss per example, -(1 - p)^gamma log(p): the cross-entropy with confident pixels weighted down.

    Here p is the predicted probability of the true class.

    Args:
        logits: (batch, *space, classes).
        labels: (batch, *space), integers.
        gamma: Focusing parameter: how strongly confident pixels are weighted down; 0 gives the cross-entropy.
        class_weights: (classes,), one weight per class (the paper's alpha); None weights all classes equally.
        ignored_label: Label of the pixels that do not contribute.

    Returns:
        (batch,), float32, the weighted mean over the pixels as in `pixel_cross_entropy`.

    Raises:
        UserError: if the shapes do not match, or gamma is negative.

    Example:
        >>> focal_loss(jnp.zeros((1, 1, 2)), jnp.array([[1]]), gamma=2.0).tolist()  # a quarter of log 2
        [0.1732867956161499]

    Reference:
        Lin et al. 2017, "Focal loss for dense object detection", section 3.2, arXiv:1708.02002; here with a softmax over the classes.
    """
    gamma = arguments.number("focal_loss", "gamma", gamma, minimum=0)
    log_p, one_hot, weights = _prepare_pixels("focal_loss", logits, labels, class_weights, ignored_label)
    log_p = _log_p_of_label(log_p, one_hot)
    # Bounded away from 0, where powers below 1 have no derivative.
    error = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return _weighted_mean(-(error**gamma) * log_p, weights)


def dice_loss(logits: jax.Array, labels: jax.Array, *, ignored_label: int = IGNORED) -> jax.Array:
    """Return the soft Dice loss per example: 1 - 2 sum(p g) / (sum(p) + sum(g)), averaged over the classes of the example.

    Here p is the predicted probability of a class and g is 1 at its pixels. Rare classes weigh as much as frequent ones. A class without
    pixels in an example is left out of its average; pixels wrongly predicted as that class still lower the overlap of their true class.

    Args:
        logits: (batch, *space, classes).
        labels: (batch, *space), integers.
        ignored_label: Label of the pixels that do not contribute.

    Returns:
        (batch,), float32, from 0 to 1.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> dice_loss(jnp.zeros((1, 2, 2)), jnp.array([[1, 1]])).tolist()  # 1 - 2 * 1 / (1 + 2)
        [0.3333333134651184]

    Reference:
        Milletari et al. 2016, arXiv:1606.04797, section 3, applied to each class, with plain sums in place of sums of squares.
    """
    log_p, one_hot, weights = _prepare_pixels("dice_loss", logits, labels, None, ignored_label)
    space = tuple(range(1, weights.ndim))
    p = jnp.where(weights[..., None] == 0, 0.0, jnp.exp(log_p) * weights[..., None])
    overlap, predicted, true = jnp.sum(p * one_hot, space), jnp.sum(p, space), jnp.sum(one_hot, space)
    present = true > 0
    dice = 2 * overlap / jnp.where(present, predicted + true, 1.0)
    loss = jnp.sum(jnp.where(present, 1 - dice, 0.0), -1) / jnp.maximum(jnp.sum(present.astype(jnp.float32), -1), 1.0)
    return jnp.where(jnp.isnan(weights).any(space), jnp.nan, loss)  # also where no class is present


def distillation_loss(logits: jax.Array, teacher: jax.Array, *, temperature: float = 1.0, mask: jax.Array | None = None) -> jax.Array:
    """Return the distillation loss per example: how far a network is from a teacher whose probabilities are softened.

    T^2 KL(softmax(teacher / T) || softmax(logits / T)) in nats, averaged over the positions of an example. The factor keeps the size of the
    gradient as the temperature T changes. It is 0 where the logits differ from those of the teacher by a constant.

    Args:
        logits: (batch, *space, classes), floats.
        teacher: Of the same shape; no gradient flows into it.
        temperature: T, above 0; the higher it is, the more the probabilities of improbable classes count.
        mask: bool (batch, *space), False at positions that do not contribute.

    Returns:
        (batch,), float32; 0 for an example of which no position contributes.

    Raises:
        UserError: if the shapes do not match, or the temperature is not above 0.

    Example:
        >>> distillation_loss(jnp.zeros((1, 2)), jnp.array([[0.0, 2.0]]), temperature=2.0).round(2)
        Array([0.44], dtype=float32)

    Reference:
        Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2.
    """
    caller = "distillation_loss"
    temperature = arguments.number(caller, "temperature", temperature)
    if not temperature > 0:
        raise UserError(f"{caller}: temperature={temperature} is not above 0; use 1 or more.")
    logits, teacher = (arguments.array(caller, name, value, "floating-point") for name, value in (("logits", logits), ("teacher", teacher)))
    if logits.shape != teacher.shape or logits.ndim < 2 or not logits.shape[-1]:
        raise UserError(
            f"{caller}: logits of shape {logits.shape} do not match those of the teacher, {teacher.shape}; give (batch, *space, classes) "
            "twice."
        )
    valid = jnp.ones(logits.shape[:-1], bool) if mask is None else arguments.mask(caller, mask, logits)
    ours, theirs = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, jax.lax.stop_gradient(teacher)))
    divergence = temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), -1)
    valid = jnp.broadcast_to(valid, divergence.shape)
    return _weighted_mean(jnp.where(valid, divergence, 0.0), valid.astype(jnp.float32))


def smoothing_loss(logits: jax.Array, *, threshold: float = 4.0, mask: jax.Array | None = None) -> jax.Array:
    """Return the truncated mean squared difference of the log-probabilities at neighbouring steps, which penalises short segments.

    The mean over steps t > 0 and classes of min(|log p[t] - log p[t - 1]|, threshold)^2. No gradient flows into p[t - 1].

    Args:
        logits: (batch, time, classes), floats.
        threshold: Above which a difference does not grow, so that true changes of class cost little; above 0.
        mask: bool (batch, time), False at steps that do not contribute, nor the differences to their neighbours.

    Returns:
        (batch,), float32; 0 for a sequence without two neighbouring steps.

    Raises:
        UserError: if the shapes do not match, or the threshold is not above 0.

    Example:
        >>> smoothing_loss(jnp.array([[[0.0, 0.0], [0.0, 0.0], [1000.0, 0.0]]])).tolist()  # differences of 0, then of log 2 and above 4
        [4.120113372802734]

    Reference:
        Farha & Gall 2019, arXiv:1903.01945, section 3.3.
    """
    caller = "smoothing_loss"
    logits = arguments.array(caller, "logits", logits, "floating-point")
    threshold = arguments.number(caller, "threshold", threshold, above=0)
    if logits.ndim != 3 or not logits.shape[-1]:
        raise UserError(f"{caller}: logits of shape {logits.shape} must be (batch, time, classes).")
    valid = jnp.ones(logits.shape[:-1], bool) if mask is None else arguments.mask(caller, mask, logits)
    valid = jnp.broadcast_to(valid, logits.shape[:-1])
    both = valid[:, 1:] & valid[:, :-1]
    # What is not counted may hold anything, and gives no gradient.
    log_p = jax.nn.log_softmax(jnp.where(valid[..., None], logits, jnp.zeros_like(logits)).astype(jnp.float32))
    step = jnp.minimum(jnp.abs(log_p[:, 1:] - jax.lax.stop_gradient(log_p[:, :-1])), threshold)
    return _weighted_mean(jnp.square(step).mean(-1), both.astype(jnp.float32))


def median_frequency_weights(pixels: np.ndarray, image_pixels: np.ndarray) -> np.ndarray:
    """Return class weights that balance rare classes: the median class frequency divided by the frequency of each class.

    The frequency of a class is the number of its pixels divided by the number of labelled (not ignored) pixels in the images that contain
    the class.

    Args:
        pixels: (classes,), the number of pixels of each class over all images.
        image_pixels: (classes,), the number of labelled pixels in the images that contain the class.

    Returns:
        (classes,), float32; 1 for a class without pixels.

    Raises:
        UserError: if the shapes do not match, or the images with a class have fewer pixels than the class.

    Example:
        >>> median_frequency_weights(np.array([10, 40, 0]), np.array([100, 100, 0])).tolist()
        [2.5, 0.625, 1.0]

    Reference:
        Eigen & Fergus 2015, section 6.3.2, arXiv:1411.4734; Badrinarayanan et al. 2015 (SegNet) use it for CamVid.
    """
    caller = "median_frequency_weights"
    pixels, image_pixels = (
        arguments.host_array(caller, name, value) for name, value in (("pixels", pixels), ("image_pixels", image_pixels))
    )
    if pixels.ndim != 1 or pixels.shape != image_pixels.shape:
        raise UserError(f"{caller}: pixels of shape {pixels.shape} and image_pixels of shape {image_pixels.shape} must both be (classes,).")
    wrong = np.flatnonzero(~((pixels >= 0) & (pixels <= image_pixels) & np.isfinite(image_pixels)))
    if len(wrong):
        c = wrong[0]
        raise UserError(
            f"{caller}: class {c} has pixels={pixels[c]} and image_pixels={image_pixels[c]}; give counts, the second of which includes "
            "the first."
        )
    present = pixels > 0
    weights = np.ones(len(pixels), np.float32)
    if present.any():
        frequency = pixels[present] / image_pixels[present]
        weights[present] = np.median(frequency) / frequency
    return weights


def _prepare_pixels(
    caller: str, logits: jax.Array, labels: jax.Array, class_weights: Sequence[float] | jax.Array | None, ignored_label: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return log-probabilities and one-hot labels (batch, *space, classes), and the pixel weights (batch, *space), 0 where ignored."""
    logits, labels = (arguments.array(caller, "logits", logits, "floating-point"), arguments.array(caller, "labels", labels, "integer"))
    ignored_label = arguments.integer(caller, "ignored_label", ignored_label)
    if logits.shape[:-1] != labels.shape or labels.ndim < 2 or not logits.shape[-1]:
        raise UserError(
            f"{caller}: logits of shape {logits.shape} do not match labels of shape {labels.shape}; "
            "give (batch, *space, classes) and (batch, *space)."
        )
    classes = logits.shape[-1]
    counts = labels != ignored_label
    one_hot = jnp.where(counts[..., None], jax.nn.one_hot(labels, classes), 0.0)
    weights = counts.astype(jnp.float32)
    if class_weights is not None:
        per_class = arguments.array(caller, "class_weights", class_weights, "integer", "floating-point").astype(jnp.float32)
        if per_class.shape != (classes,):
            raise UserError(f"{caller}: class_weights has shape {per_class.shape} for {classes} classes; give one weight per class.")
        weights = jnp.einsum("...c,c->...", one_hot, per_class)
    invalid = counts & ((labels < 0) | (labels >= classes))
    return jax.nn.log_softmax(logits.astype(jnp.float32)), one_hot, jnp.where(invalid, jnp.nan, weights)


def _log_p_of_label(log_p: jax.Array, one_hot: jax.Array) -> jax.Array:
    """Return the log-probability of the true class of each pixel; 0 at ignored pixels, even if their logits are not finite."""
    return jnp.sum(jnp.where(one_hot > 0, log_p, 0.0), -1)


def _weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the weighted mean over all axes but the first; 0 where all weights are 0."""
    space = tuple(range(1, values.ndim))
    total = weights.sum(space)
    return jnp.sum(values * weights, space) / jnp.where(total > 0, total, 1.0)


def logistic_mixture_loss(outputs: jax.Array, x: jax.Array, *, levels: int = 65536) -> jax.Array:
    """Return the negative log-likelihood of waveform samples under mixtures of logistics, each integrated over the width of one level.

    Args:
        outputs: (*batch, 3 * mixtures): the logits of the mixture, the means, and the logarithms of the scales, concatenated.
        x: (*batch,), samples in -1..1. The outermost levels include all values beyond them.
        levels: Quantisation levels of the waveform; 65536 for 16 bits.

    Returns:
        (*batch,), float32, in nats.

    Raises:
        UserError: if the shapes do not match, or levels is out of range.

    Example:
        >>> round(float(logistic_mixture_loss(jnp.array([0.0, 0.5, -7.0]), jnp.array(0.5))), 2)  # one logistic, centred on the sample
        4.78

    Reference:
        Salimans et al. 2017, arXiv:1701.05517, section 2.1; for audio, van den Oord et al. 2018, arXiv:1711.10433, section 3.1.
    """
    caller = "logistic_mixture_loss"
    outputs, x = (arguments.array(caller, name, value, "floating-point") for name, value in (("outputs", outputs), ("x", x)))
    levels = arguments.integer(caller, "levels", levels, minimum=2)
    if levels > 2**32:
        raise UserError(f"{caller}: levels={shown(levels)} is above those of 32 bits; use 2**32 or less.")
    if outputs.ndim == 0 or not outputs.shape[-1] or outputs.shape[-1] % 3 or outputs.shape[:-1] != x.shape:
        raise UserError(
            f"{caller}: outputs of shape {outputs.shape} do not fit x of shape {x.shape}; give (*batch, 3 * mixtures) and (*batch,)."
        )
    logits, means, log_scales = jnp.split(outputs.astype(jnp.float32), 3, axis=-1)
    log_scales = jnp.maximum(log_scales, -14.0)  # far narrower than one level of 16 bits
    x = jnp.broadcast_to(x.astype(jnp.float32)[..., None], means.shape)
    half, inverse = 1 / (levels - 1), jnp.exp(-log_scales)
    above, below = (x + half - means) * inverse, (x - half - means) * inverse
    # log(sigmoid(above) - sigmoid(below)), rearranged to avoid cancellation.
    middle = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + _log_width(half, log_scales)
    log_p = jnp.where(x <= -1 + half, jax.nn.log_sigmoid(above), jnp.where(x >= 1 - half, jax.nn.log_sigmoid(-below), middle))
    return -jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + log_p, axis=-1)


def _log_width(half: float, log_scales: jax.Array) -> jax.Array:
    """Return log(1 - exp(-2 half / scale)); of levels far narrower than the scale, by the logarithms, as the quotient would be 0."""
    narrow = 1e-6
    quotient = half * jnp.exp(-log_scales)
    return jnp.where(quotient < narrow, math.log(2 * half) - log_scales, jnp.log(-jnp.expm1(-2 * jnp.maximum(quotient, narrow))))


def si_sdr(estimate: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return the scale-invariant signal-to-distortion ratio of each source, in dB.

    For an estimate e and a target t, both with their means removed, it is 10 log10(|a t|^2 / |e - a t|^2) with a = <e, t> / <t, t>: the
    energy of the component of e along t, over the energy of the rest. It is limited to -80 ... 80 dB, because a component with less than
    1e-8 of the energy counts as 1e-8; it is -80, with gradient 0, where either waveform is silent.

    Args:
        estimate: (batch, time, sources), floats.
        target: (batch, time, sources), floats.
        mask: bool (batch, time), False beyond the end of a shorter waveform; samples there are ignored.

    Returns:
        (batch, sources), float32.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> target = jnp.array([1.0, -1.0, 1.0, -1.0]).reshape(1, 4, 1)
        >>> round(float(si_sdr(target + jnp.array([0.1, 0.1, -0.1, -0.1]).reshape(1, 4, 1), target)[0, 0]), 3)
        20.0

    Reference:
        Le Roux et al. 2019, arXiv:1811.02508, equation 3.
    """
    estimate, target, valid = _waveforms("si_sdr", ("estimate", estimate), ("target", target), mask)
    e, t = _normalise(estimate, valid), _normalise(target, valid)
    along = jnp.sum(e * t, axis=1, keepdims=True)
    rest = jnp.sum(jnp.square(e - along * t), axis=1)
    silent = jnp.sum(jnp.square(e), axis=1) == 0
    ratio = (jnp.square(along[:, 0]) + _FLOOR) / (jnp.where(silent, 1.0, rest) + _FLOOR)
    return 10 * jnp.log10(ratio)


def separation_loss(estimates: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return the permutation-invariant separation loss: the mean of -`si_sdr` over the sources, under the best assignment.

    Every permutation of the estimates is tried, so the cost grows with the factorial of the number of sources.

    Args:
        estimates: (batch, time, sources), floats, in any order.
        targets: (batch, time, sources), floats.
        mask: bool (batch, time), False beyond the end of a shorter waveform; samples there are ignored.

    Returns:
        (batch,), float32, in dB.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> targets = jnp.array([[1.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [-1.0, -1.0]])[None]
        >>> separation_loss(3 * targets[..., ::-1], targets).round().tolist()
        [-80.0]

    Reference:
        Yu et al. 2017, arXiv:1607.00325 (permutation-invariant training), with the loss of Luo & Mesgarani 2019, arXiv:1809.07454.
    """
    estimates, targets, _ = _waveforms("separation_loss", ("estimates", estimates), ("targets", targets), mask)
    batch, time, sources = targets.shape
    pairs = (batch, time, sources, sources)
    e, t = (jnp.broadcast_to(x, pairs).reshape(batch, time, sources**2) for x in (estimates[..., None], targets[:, :, None]))
    ratios = si_sdr(e, t, mask).reshape(batch, sources, sources)
    permutations = np.array(list(itertools.permutations(range(sources))))
    return -ratios[:, np.arange(sources)[None], permutations].mean(-1).max(-1)


def _waveforms(
    caller: str, estimate: tuple[str, jax.Array], target: tuple[str, jax.Array], mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Check two waveforms, given with their names, and return them and which samples count, bool (batch, time, 1)."""
    (e_name, e), (t_name, t) = ((name, arguments.array(caller, name, value, "floating-point")) for name, value in (estimate, target))
    if e.ndim != 3 or e.shape != t.shape or not e.shape[2]:
        raise UserError(f"{caller}: {e_name} of shape {e.shape} and {t_name} of shape {t.shape} must both be (batch, time, sources).")
    if mask is None:
        return e, t, jnp.ones((*t.shape[:2], 1), bool)
    mask = arguments.array(caller, "mask", mask, "bool")
    if mask.shape != t.shape[:2]:
        raise UserError(f"{caller}: a mask of shape {mask.shape} does not fit waveforms of shape {t.shape}; give (batch, time).")
    return e, t, mask[..., None]


def _normalise(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Subtract the mean of each waveform and scale it to energy 1; a silent one stays 0."""
    x = jnp.where(valid, x.astype(jnp.float32), 0.0)
    mean = x.sum(1, keepdims=True) / jnp.maximum(valid.sum(1, keepdims=True), 1).astype(jnp.float32)
    x = jnp.where(valid, x - mean, 0.0)
    energy = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    return x / jnp.sqrt(jnp.where(energy > 0, energy, 1.0))
