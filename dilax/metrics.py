"""Metrics as sums and counts under a mask: added over batches and devices, and divided once at the end."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dilax import arguments
from dilax.errors import UserError, shown
from dilax.losses import IGNORED
from dilax.losses import si_sdr as si_sdr  # a metric that is also the basis of a loss

Confusion = np.ndarray | jax.Array | Sequence[Sequence[int | float]]


def classification_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Return the sums of loss, accuracy and confusion over the examples that count.

    Args:
        logits: (batch, classes).
        labels: (batch,), integers.
        mask: bool (batch,), False for padded examples, which do not count.

    Returns:
        "loss": the sum of the cross-entropy in nats, float32 (); NaN if a label that counts is not a class. "accuracy": the number of
        correct predictions, float32 (). "count": the number of examples, by which both are to be divided, float32 (). "confusion": float32
        (classes, classes), rows are the true class and columns the predicted one.

    Raises:
        UserError: if shapes or dtypes do not fit.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
        >>> sums = classification_sums(logits, jnp.array([0, 0, 1]), jnp.array([True, True, False]))
        >>> float(sums["accuracy"]), float(sums["count"]), sums["confusion"].tolist()
        (1.0, 2.0, [[1.0, 1.0], [0.0, 0.0]])
    """
    logits, labels, mask = _checked("classification_sums", logits, labels, mask)
    if logits.ndim != 2:
        raise UserError(f"classification_sums: logits of shape {logits.shape} must be (batch, classes).")
    classes, weight = logits.shape[-1], mask.astype(jnp.float32)
    truth = jax.nn.one_hot(labels, classes)
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    # A padded row may hold anything, even infinities, so it is replaced before the sum.
    losses = jnp.where(mask, -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0), -1), 0.0)
    invalid = mask & ((labels < 0) | (labels >= classes))
    return {
        "loss": jnp.where(invalid.any(), jnp.nan, losses.sum()),
        "accuracy": jnp.sum(weight * jnp.sum(truth * predicted, -1)),
        "count": weight.sum(),
        "confusion": jnp.einsum("ni,nj,n->ij", truth, predicted, weight),
    }


def segmentation_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array, *, ignored_label: int = IGNORED) -> dict[str, jax.Array]:
    """Return the sums of loss, accuracy and confusion over the pixels that count.

    Args:
        logits: (batch, *space, classes).
        labels: (batch, *space), integers.
        mask: bool (batch,), False for padded examples, whose pixels do not count.
        ignored_label: Label of the pixels that do not count.

    Returns:
        "loss": the sum of the cross-entropy in nats, float32 (); NaN if a label that counts is not a class. "accuracy": the number of
        correct pixels, int32 (). "count": the number of pixels, by which both are to be divided, int32 (). "confusion": int32 (classes,
        classes), rows are the true class and columns the predicted one. The integers are exact for images of up to 2^24 pixels.

    Raises:
        UserError: if shapes or dtypes do not fit.

    Example:
        >>> logits = jnp.array([[[[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]]]])
        >>> sums = segmentation_sums(logits, jnp.array([[[0, 0, 255]]]), jnp.array([True]))
        >>> int(sums["accuracy"]), int(sums["count"]), sums["confusion"].tolist()
        (1, 2, [[1, 1], [0, 0]])
    """
    logits, labels, mask = _checked("segmentation_sums", logits, labels, mask)
    ignored_label = arguments.integer("segmentation_sums", "ignored_label", ignored_label)
    batch, classes, pixels = logits.shape[0], logits.shape[-1], math.prod(labels.shape[1:])
    logits, labels = logits.reshape(batch, pixels, classes), labels.reshape(batch, pixels)
    counts = (labels != ignored_label) & mask[:, None]
    truth = jnp.where(counts[..., None], jax.nn.one_hot(labels, classes), 0.0)
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    # Float32 counts one image exactly and multiplies fast on every device; the images are added as integers.
    confusion = jnp.einsum("bni,bnj->bij", truth, predicted).astype(jnp.int32).sum(0)
    loss = -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0))
    invalid = counts & ((labels < 0) | (labels >= classes))
    return {
        "loss": jnp.where(invalid.any(), jnp.nan, loss),
        "accuracy": jnp.trace(confusion),
        "count": counts.astype(jnp.int32).sum(),
        "confusion": confusion,
    }


def _checked(caller: str, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return logits in float32, labels and mask, checked against each other."""
    logits = arguments.array(caller, "logits", logits, "floating-point").astype(jnp.float32)
    labels, mask = arguments.array(caller, "labels", labels, "integer"), arguments.array(caller, "mask", mask, "bool")
    if labels.ndim == 0 or logits.shape[:-1] != labels.shape or mask.shape != labels.shape[:1] or not logits.shape[-1]:
        raise UserError(
            f"{caller}: logits of shape {logits.shape}, labels of shape {labels.shape} and mask of shape {mask.shape} do not fit; "
            "give (batch, *space, classes), (batch, *space) and (batch,)."
        )
    return logits, labels, mask


# Of BT.601, in studio range: what MATLAB's rgb2ycbcr gives, by which papers on restoration score images in colour.
_LUMA, _BLACK = (65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255
_SSIM_RADIUS, _SSIM_SIGMA = 5, 1.5  # a window of 11x11, as in the paper
_SSIM_CONSTANTS = (0.01**2, 0.03**2)


def luminance(images: jax.Array) -> jax.Array:
    """Return the luminance of images: BT.601 in studio range, from 16/255 to 235/255, as papers on super-resolution score it.

    Args:
        images: (batch, height, width, 3), RGB in 0..1; or (batch, height, width, 1), grey, which is returned as it is.

    Returns:
        (batch, height, width, 1), float32.

    Raises:
        UserError: if images are neither.

    Example:
        >>> round(255 * luminance(jnp.ones((1, 1, 1, 3))).item(), 3)
        235.0
    """
    images = arguments.array("luminance", "images", images, "floating-point").astype(jnp.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"luminance: images of shape {images.shape} must be (batch, height, width, 1 or 3).")
    weights = jnp.array(_LUMA, jnp.float32)[None, None, None]
    return images if images.shape[-1] == 1 else jnp.sum(images * weights, -1, keepdims=True) + _BLACK


def psnr(images: jax.Array, targets: jax.Array, *, border: int = 0) -> jax.Array:
    """Return the peak signal-to-noise ratio of each image in dB, -10 log10 of the mean squared error of all its values.

    Args:
        images: (batch, height, width, channels), floats in 0..1.
        targets: What they should be, of the same shape.
        border: Pixels along each edge that do not count, as papers on super-resolution leave out the factor by which they enlarge.

    Returns:
        (batch,), float32; infinite where an image equals its target.

    Raises:
        UserError: if the shapes differ, or the border leaves nothing.

    Example:
        >>> psnr(jnp.full((1, 8, 8, 1), 0.6), jnp.full((1, 8, 8, 1), 0.5)).round(3).tolist()
        [20.0]
    """
    images, targets = _cut("psnr", images, targets, border, least=1)
    return -10 * jnp.log10(jnp.mean(jnp.square(images - targets), (1, 2, 3)))


def ssim(images: jax.Array, targets: jax.Array, *, border: int = 0) -> jax.Array:
    """Return the structural similarity of each image, the mean of `ssim_map` (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    Args:
        images: (batch, height, width, channels), floats in 0..1; at least 11 pixels high and wide within the border.
        targets: As those of `psnr`.
        border: As that of `psnr`.

    Returns:
        (batch,), float32, from -1 to 1: that of scikit-image with `gaussian_weights=True, use_sample_covariance=False, data_range=1`.

    Raises:
        UserError: if the shapes differ, or the images are too small.

    Example:
        >>> images = jax.random.uniform(jax.random.key(0), (1, 16, 16, 1))
        >>> ssim(images, images).tolist()
        [1.0]
    """
    images, targets = _cut("ssim", images, targets, border, least=2 * _SSIM_RADIUS + 1)
    return ssim_map(images, targets).mean((1, 2, 3))


def ssim_map(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the structural similarity at each pixel whose window of 11x11, weighted by a Gaussian of sigma 1.5, lies within the image.

    Args:
        images: As those of `ssim`.
        targets: As those of `psnr`.

    Returns:
        (batch, height - 10, width - 10, channels), float32.

    Raises:
        UserError: as `ssim`.
    """
    images, targets = _cut("ssim_map", images, targets, 0, least=2 * _SSIM_RADIUS + 1)
    # Float32 then loses little where variances are small beside the square of the mean: they do not depend on an offset.
    middle = targets.mean((1, 2), keepdims=True)
    x, y = images - middle, targets - middle
    products = jnp.concatenate([x, y, x * x, y * y, x * y], -1)
    mean_x, mean_y, xx, yy, xy = jnp.split(_smoothed(_smoothed(products, 1), 2), 5, -1)
    var_x, var_y, cov = xx - mean_x * mean_x, yy - mean_y * mean_y, xy - mean_x * mean_y
    (c1, c2), mean_x, mean_y = _SSIM_CONSTANTS, mean_x + middle, mean_y + middle
    return ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def _smoothed(x: jax.Array, axis: int) -> jax.Array:
    """Return the means under the Gaussian window along an axis, where it fits."""
    taps = np.exp(-0.5 * (np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1) / _SSIM_SIGMA) ** 2)
    size = x.shape[axis] - 2 * _SSIM_RADIUS
    parts = (jax.lax.slice_in_dim(x, i, i + size, axis=axis) * tap for i, tap in enumerate((taps / taps.sum()).tolist()))
    return functools.reduce(jnp.add, parts)


def _cut(caller: str, images: jax.Array, targets: jax.Array, border: int, *, least: int) -> tuple[jax.Array, jax.Array]:
    """Return images and targets in float32 without their border, checked against each other."""
    images, targets = (
        arguments.array(caller, name, each, "floating-point").astype(jnp.float32)
        for name, each in (("images", images), ("targets", targets))
    )
    border = arguments.integer(caller, "border", border, minimum=0)
    if images.ndim != 4 or images.shape != targets.shape:
        raise UserError(
            f"{caller}: images of shape {images.shape} and targets of shape {targets.shape} must have one shape, "
            "(batch, height, width, channels)."
        )
    if min(images.shape[1:3]) - 2 * border < least:
        raise UserError(
            f"{caller}: of images of {images.shape[1]} x {images.shape[2]} pixels, border={border} leaves less than {least} x {least}; "
            "give larger images, or a smaller border."
        )
    height, width = (size - border for size in images.shape[1:3])
    return images[:, border:height, border:width], targets[:, border:height, border:width]


def class_iou(confusion: Confusion) -> NDArray[np.float64]:
    """Return the intersection over union of each class.

    Args:
        confusion: (classes, classes), counts summed over the whole evaluation; rows are the true class.

    Returns:
        (classes,), float64, from 0 to 1; NaN for a class that occurs neither in the truth nor in the predictions.

    Example:
        >>> class_iou([[3, 1, 0], [0, 1, 0], [0, 0, 0]]).tolist()
        [0.75, 0.5, nan]
    """
    counts = arguments.host_array("class_iou", "confusion", confusion).astype(np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise UserError(f"class_iou: confusion of shape {counts.shape} must be (classes, classes).")
    if wrong := counts[~((counts >= 0) & np.isfinite(counts))].tolist():
        raise UserError(f"class_iou: confusion holds {wrong[0]:g}, which is not a count; give finite numbers of 0 or more.")
    intersection = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)


def mean_iou(confusion: Confusion) -> float:
    """Return the mean of `class_iou` over the classes that occur in the truth or in the predictions; NaN if none does.

    Args:
        confusion: (classes, classes), counts summed over the whole evaluation; rows are the true class.

    Example:
        >>> mean_iou([[3, 1, 0], [0, 1, 0], [0, 0, 0]])
        0.625
    """
    iou = class_iou(confusion)
    occurring = iou[~np.isnan(iou)]
    return float(occurring.mean()) if len(occurring) else float("nan")


def dice_sums(
    predictions: jax.Array, labels: jax.Array, mask: jax.Array, *, num_classes: int, ignored_label: int = IGNORED
) -> dict[str, jax.Array]:
    """Return the sums of the Dice coefficient of each class over the examples, of which each counts alike, whatever its size.

    The coefficient of a class in an example is 2 |P and T| / (|P| + |T|), where P are the pixels predicted as that class and T those that
    are labelled so. An example counts for the classes that occur in it, as labels or as predictions.

    Args:
        predictions: (batch, *space), integers.
        labels: (batch, *space), integers.
        mask: bool (batch,), False for padded examples, which do not count.
        num_classes: Number of classes.
        ignored_label: Label of the pixels that do not count.

    Returns:
        "dice": the sums, float32 (classes,). "dice_count": the number of examples by which each is to be divided, int32 (classes,).

    Raises:
        UserError: if shapes or dtypes do not fit.

    Example:
        >>> sums = dice_sums(jnp.array([[0, 1, 1, 1]]), jnp.array([[0, 0, 0, 1]]), jnp.array([True]), num_classes=3)
        >>> sums["dice"].tolist(), sums["dice_count"].tolist()
        ([0.5, 0.5, 0.0], [1, 1, 0])

    Reference:
        Dice 1945, "Measures of the amount of ecologic association between species".
    """
    caller = "dice_sums"
    predictions, labels = (arguments.array(caller, name, x, "integer") for name, x in (("predictions", predictions), ("labels", labels)))
    mask = arguments.array(caller, "mask", mask, "bool")
    num_classes = arguments.integer(caller, "num_classes", num_classes, minimum=1)
    ignored_label = arguments.integer(caller, "ignored_label", ignored_label)
    if labels.ndim < 2 or predictions.shape != labels.shape or mask.shape != labels.shape[:1]:
        raise UserError(
            f"{caller}: predictions of shape {predictions.shape}, labels of shape {labels.shape} and mask of shape {mask.shape} do not "
            "fit; give (batch, *space) twice, and (batch,)."
        )
    space, counts = tuple(range(1, labels.ndim)), labels != ignored_label

    def per_class(number: int) -> tuple[jax.Array, jax.Array]:
        found, true = ((x == number) & counts for x in (predictions, labels))
        both, either = (found & true).sum(space), found.sum(space) + true.sum(space)
        return 2 * both / jnp.maximum(either, 1), (either > 0) & mask

    # A loop, since one-hot arrays of volumes take `classes` times their memory.
    pairs = [per_class(number) for number in range(num_classes)]
    return {
        "dice": jnp.stack([jnp.where(counted, dice, 0.0).sum() for dice, counted in pairs]),
        "dice_count": jnp.stack([counted.astype(jnp.int32).sum() for _, counted in pairs]),
    }


def hausdorff_distance(
    prediction: np.ndarray, truth: np.ndarray, *, spacing: float | Sequence[float] = 1.0, percentile: float = 95.0
) -> float:
    """Return how far apart the surfaces of two regions lie: the Hausdorff distance, or a percentile in place of the largest distance.

    From each pixel on the surface of a region the distance to the nearest one on the surface of the other is measured, between their
    centres, and the percentile of these distances is taken; the result is the larger one of the two directions. A pixel of a region is on
    its surface if one of the pixels that share a face with it is not in the region, as are those beyond the border of the array.

    Args:
        prediction: bool (*space).
        truth: bool (*space).
        spacing: Distance of neighbouring pixels, one for all axes or one per axis; the result is in its unit, such as millimetres.
        percentile: From 0 to 100; 100 is the Hausdorff distance itself, which a single pixel decides.

    Returns:
        The distance; infinite if one of the regions is empty, NaN if both are.

    Raises:
        UserError: if the shapes differ, or an option is out of range.

    Example:
        >>> truth = np.zeros((1, 8), bool)
        >>> truth[0, 2:5] = True
        >>> hausdorff_distance(np.roll(truth, 2, axis=1), truth, spacing=(1.0, 0.5), percentile=100)
        1.0

    Reference:
        Huttenlocher et al. 1993, section 2; the 95th percentile as in the BraTS challenge, Menze et al. 2015, section III-C.
    """
    from scipy.spatial import KDTree

    caller = "hausdorff_distance"
    regions = [_region(caller, name, x) for name, x in (("prediction", prediction), ("truth", truth))]
    if regions[0].shape != regions[1].shape:
        raise UserError(f"{caller}: prediction of shape {regions[0].shape} and truth of shape {regions[1].shape} differ; give equal ones.")
    sizes = np.asarray(arguments.host_array(caller, "spacing", spacing), np.float64)
    if sizes.shape not in ((), (regions[0].ndim,)) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise UserError(
            f"{caller}: spacing={shown(spacing)} must be a number above 0, or one for each of the {regions[0].ndim} axes of the regions."
        )
    percentile = arguments.number(caller, "percentile", percentile, minimum=0)
    if percentile > 100:
        raise UserError(f"{caller}: percentile={percentile} is above 100; give 0 to 100, of which 100 is the largest distance.")
    points = [np.argwhere(_surface(region)) * sizes for region in regions]
    if not (len(points[0]) and len(points[1])):
        return math.inf if len(points[0]) or len(points[1]) else math.nan
    directed = (KDTree(theirs).query(ours)[0] for ours, theirs in (points, points[::-1]))
    return float(max(np.percentile(distances, percentile) for distances in directed))


def _region(caller: str, argument: str, value: Any) -> np.ndarray:
    region = np.asarray(value) if isinstance(value, np.ndarray | jax.Array) else np.asarray(None)
    if region.dtype != bool or not 1 <= region.ndim <= 6:
        raise UserError(f"{caller}: {argument}={shown(value)} is not a region; give an array bool (*space), such as mask == 1.")
    return region


def _surface(region: np.ndarray) -> np.ndarray:
    """Return the pixels of a region of which a neighbour across a face is not in it."""
    padded = np.pad(region, 1)
    inner = tuple(slice(1, -1) for _ in range(region.ndim))
    interior = region.copy()
    for axis in range(region.ndim):
        for shift in (-1, 1):
            interior &= np.roll(padded, shift, axis)[inner]
    return region & ~interior
