"""How images are cut into windows for a network that restores them, and the scores of whole images from those of their windows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import dilax
from dilax import UserError, loading
from train.data import degradations
from train.data.image_windows import Cut, Picture, trimmed, window_side
from train.tasks.base import Batch

LARGEST = 160  # side of windows unless the config says otherwise: some hundred MB of activations for a batch
SSIM_MARGIN = 5  # pixels that structural similarity sees on either side
_ANALYSED = 512  # side of the image by which the receptive field of a model is found


def cut_of(config: ConfigDict, channels: int, pictures: list[Picture]) -> Cut:
    """Return how images are cut into windows for the model and the degradation of a config.

    Raises:
        UserError: if an image is too small.
    """
    options: Any = config.restoration
    radius, period = sight(config, channels)
    grid = math.lcm(degradations.grid(options), period)
    margin = radius + SSIM_MARGIN + degradations.context(options)
    border = options.scale if options.degradation == degradations.RESOLUTION else 0
    least = max(options.crop, 2 * (SSIM_MARGIN + border) + 1)
    for picture in pictures:
        if min(trimmed(picture.size, grid)) < least:
            what = f"config.restoration.crop={options.crop}" if least == options.crop else f"the {least} that are needed to score it"
            raise UserError(
                f"{picture.name} has {picture.size[0]} x {picture.size[1]} pixels, fewer than {what}; leave it out"
                f"{', or choose a smaller crop' if least == options.crop else ''}."
            )
    window = window_side(pictures, options.window, max(LARGEST, least), grid, margin)
    if window < options.crop:
        raise UserError(
            f"config.restoration.crop={options.crop} does not fit into config.restoration.window={options.window}; choose a smaller crop, "
            "or a larger window."
        )
    return Cut(window, margin, grid, channels)


def sight(config: ConfigDict, channels: int) -> tuple[int, int]:
    """Return how many pixels the model of a config sees on either side, and its period; (0, 1) if its outputs are not images.

    Raises:
        UserError: if it sees the whole image.
    """
    given: Any = config
    fields = given.model.to_dict()
    model = loading.make_model({**fields, **dict.fromkeys(dilax.models.output_fields(fields["name"]), channels)})
    x = jax.ShapeDtypeStruct((1, _ANALYSED, _ANALYSED, channels), jnp.float32)
    outputs, shapes = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)
    if getattr(outputs, "shape", None) != x.shape:
        return 0, 1  # which is refused when the run is built
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def run(x: jax.Array) -> Any:
        return model.apply(zeros, x, train=False)

    seen = dilax.receptive_field(run, x)
    periods = [field.period for field in seen if field.size is not None and field.period is not None]
    if len(periods) < len(seen):
        raise UserError(
            f"config.model.name={fields['name']!r} sees the whole image at once, so that images cannot be restored in windows; choose "
            "another model, such as 'ircnn' without a norm of whole images."
        )
    return max(max(field.left, field.right, 0) for field in seen), math.lcm(*periods)


def scored(batch: Batch, margin: int) -> jax.Array:
    """Return the pixels that windows are scored on, bool (batch, side, side): those that count, `margin` or more within their image."""
    side = batch["image"].shape[1]
    counted = batch["mask"][:, None, None]
    for axis in range(2):
        first, stop = batch["kept"][:, 2 * axis], batch["kept"][:, 2 * axis + 1]
        line = batch["place"][:, axis, None] + jnp.arange(side)[None]
        inside = (line >= jnp.maximum(first, margin)[:, None]) & (line < jnp.minimum(stop, batch["size"][:, axis] - margin)[:, None])
        counted &= inside[:, :, None] if axis == 0 else inside[:, None, :]
    return counted


def image_scores(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return PSNR in dB, of at most 100, and SSIM of each image, (images,), from what is kept of its windows."""
    total = {name: np.bincount(kept["number"], np.asarray(values, np.float64)) for name, values in kept.items() if name != "number"}
    present = total["pixels"] > 0
    found = {}
    for end in ("", "_degraded"):
        mean = total[f"error{end}"][present] / total["pixels"][present]
        found[f"psnr{end}"] = -10 * np.log10(np.maximum(mean, 1e-10))
        found[f"ssim{end}"] = total[f"ssim{end}"][present] / total["places"][present]
    return found
