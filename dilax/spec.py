"""What a dataset looks like to a model: shapes, names and scales."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Pixels = TypeVar("Pixels", jax.Array, np.ndarray)
MIDDLE_GREY = 128  # pads images and volumes; `to_float` maps it nearly to 0
PIXEL_ORDERS = ("", "rows", "permuted")


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The description of a dataset that travels from its reader to the model, to the folder of a run, and to prediction.

    Attributes:
        name: Name of the dataset.
        input_shape: Shape of one model input: (height, width, channels), (x, y, z, channels), (time, channels), or (time,) for codes.
        outputs: Name of each output: the classes, the columns of a table, the sources of a mixture, ...
        examples: Number of training examples; 0 if unknown.
        symbols: What each code stands for, if inputs are integer codes.
        units: Units of text: "characters" or "bytes".
        sample_rate: Samples per second, for sound.
        mean: Subtracted from each input channel, before the division by `std`. For images, of colours from 0 to 1.
        std: Standard deviation of each channel; see `mean`. That of a channel that was constant in training is 1.
        pixels: How images become sequences: "" leaves them images, "rows" reads their pixels row by row, "permuted" in one fixed random
            order.
        class_weights: Weight of each class in the training loss; () weighs all classes alike.
        enlarged: How many times images are enlarged, by bicubic interpolation, before a model restores them.
        intensities: Of volumes, the two intensities that become black and white; () takes percentiles. See `dilax.volumes.to_levels`.
        stretched: Whether images whose boxes are detected are scaled to `input_shape` whatever their aspect, instead of being padded.
    """

    name: str
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    examples: int = 0
    symbols: tuple[str, ...] = ()
    units: str = ""
    sample_rate: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pixels: str = ""
    class_weights: tuple[float, ...] = ()
    enlarged: int = 1
    intensities: tuple[float, ...] = ()
    stretched: bool = False

    @property
    def is_volume(self) -> bool:
        """Whether inputs are volumes, images of three axes."""
        return len(self.input_shape) == 4

    @property
    def dtype(self) -> str:
        """The dtype of one input: "int32" for codes, else "float32"."""
        return "int32" if self.symbols else "float32"

    def prepare(self, images: jax.Array) -> jax.Array:
        """Map images to model inputs: standardise the colours, then lay out the pixels.

        Args:
            images: uint8 (batch, height, width, channels), or floats from -1 to 1.

        Returns:
            Floats of the same shape, or (batch, height * width, channels) if `pixels` is set.
        """
        x = to_float(images) if images.dtype == jnp.uint8 else images
        if self.mean or self.std:
            mean, std = (jnp.broadcast_to(jnp.asarray(values or (0.5,), x.dtype), x.shape) for values in (self.mean, self.std))
            x = ((x + 1) / 2 - mean) / std
        if not self.pixels:
            return x
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return x[:, np.random.default_rng(0).permutation(x.shape[1])] if self.pixels == "permuted" else x

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Standardise values (..., channels) as the training data was: computed in float64, returned in float32."""
        return ((np.asarray(values, np.float64) - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Undo `scale`; float64, since float32 may not tell values apart that are large beside their deviation."""
        return np.asarray(values, np.float64) * np.asarray(self.std) + np.asarray(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "DataSpec":
        """Return the spec that `to_json` was called on."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        return cls(**values)


def to_float(images: Pixels) -> Pixels:
    """Map uint8 pixels 0..255 to float32 -1..1."""
    return images.astype(jnp.float32) / 127.5 - 1


def from_float(images: Pixels) -> Pixels:
    """Map floats -1..1 to 0..255, as `to_float` backwards, without rounding or clipping them."""
    return (images + 1) * 127.5
