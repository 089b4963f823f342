"""Volumes: NIfTI files, in one orientation of their axes, as images of three axes with levels from 0 to 255."""

import contextlib
import dataclasses
import gzip
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dilax.errors import UserError, reason
from dilax.files import check_file, replace_file
from dilax.spec import MIDDLE_GREY

SUFFIXES = (".nii", ".nii.gz")
KIND = "a NIfTI file (.nii or .nii.gz)"
PERCENTILES = (0.5, 99.5)  # of a volume, which become black and white
_COMPRESSED = 1032  # bytes of 1 byte, at most, in zlib


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A volume as a file holds it, with its axes turned to those that point to the right, to the front and upwards.

    Attributes:
        values: (x, y, z), or (x, y, z, channels), in the turned order.
        spacing: Millimetres between neighbouring voxels along the turned axes.
        affine: (4, 4), from the voxels of the file to millimetres, as the file holds it.
        turned: (3, 2), how the axes of the file were turned, as nibabel notes it: for each the axis that it became, and 1 or -1.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    turned: np.ndarray

    def unturned(self, array: np.ndarray) -> np.ndarray:
        """Return an array (x, y, z), such as labels of the voxels, with the axes of the file."""
        back = _nibabel().orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), self.turned)
        return np.ascontiguousarray(_nibabel().apply_orientation(array, back))


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has a name like those of volumes."""
    return str(path).lower().endswith(SUFFIXES)


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI file, which requires nibabel.

    Returns:
        The volume; its values have the scaling of the file applied, and the dtype of the file where it has none.

    Raises:
        UserError: if nibabel is not installed, the file is missing, truncated, or not NIfTI, it does not have 3 axes of space and perhaps
            one of channels, or values that are not finite.

    Example:
        >>> read_volume("brain.nii.gz").values.shape  # doctest: +SKIP
        (256, 256, 256)
    """
    with _opened(path) as image:
        values, affine = np.asarray(image.dataobj), np.asarray(image.affine, np.float64)
    values = values.reshape(_shape(values.shape, path))
    if values.dtype.kind not in "iufb":
        raise UserError(f"{path} holds {values.dtype}, which are not numbers; give a volume of intensities or class numbers.")
    if values.dtype.kind == "f" and (count := int((~np.isfinite(values)).sum())):
        raise UserError(f"{path} holds {count} values that are not finite; replace them, such as by 0 outside of the body.")
    turned = _orientation(affine, path)
    return Volume(np.asarray(_nibabel().apply_orientation(values, turned)), _spacing(affine, turned), affine, turned)


def read_header(path: str | os.PathLike[str]) -> tuple[tuple[int, ...], tuple[float, float, float]]:
    """Return what the header of a file says of the volume that `read_volume` would read.

    Returns:
        Its shape, (x, y, z) or (x, y, z, channels), and its spacing, the millimetres between neighbouring voxels along each axis.

    Raises:
        UserError: as `read_volume`, but for the values.
    """
    with _opened(path) as image:
        shape, affine = _shape(image.shape, path), np.asarray(image.affine, np.float64)
    turned = _orientation(affine, path)
    return (*(shape[i] for i in np.argsort(turned[:, 0])), *shape[3:]), _spacing(affine, turned)


def _spacing(affine: np.ndarray, turned: np.ndarray) -> tuple[float, float, float]:
    return tuple(np.sqrt(np.square(affine[:3, :3]).sum(0))[np.argsort(turned[:, 0])].tolist())


def write_labels(path: pathlib.Path, labels: np.ndarray, like: Volume) -> None:
    """Write labels, uint8 (x, y, z) in the turned order of a volume, as a NIfTI file with the affine and the axes of its file.

    Raises:
        UserError: if the file cannot be written.
    """
    nibabel = _nibabel()
    image = nibabel.Nifti1Image(like.unturned(labels).astype(np.uint8), like.affine)
    content = image.to_bytes()
    try:
        replace_file(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; give another folder.") from error


def to_levels(values: np.ndarray, *, intensities: Sequence[float] = ()) -> np.ndarray:
    """Map intensities linearly to the levels 0 to 255, those beyond the limits being clipped.

    Scanners give intensities in arbitrary units, so that each volume, and each channel of it, has limits of its own by default.

    Args:
        values: (x, y, z), or (x, y, z, channels), of any dtype.
        intensities: The two intensities that become 0 and 255, such as (-100, 300) for soft tissue in CT; () takes the percentiles 0.5 and
            99.5 of each channel or, where these are equal, its extremes. A constant channel becomes 0.

    Returns:
        uint8 (x, y, z, channels).

    Raises:
        UserError: if the values are not numbers of that shape, or the limits are not two, the lower one first.

    Example:
        >>> to_levels(np.array([[[-1000.0, 0.0, 100.0, 3000.0]]]), intensities=(-100, 300))[0, 0, :, 0].tolist()
        [0, 64, 128, 255]
    """
    values = np.asarray(values) if isinstance(values, np.ndarray) else np.asarray(None)
    if values.ndim not in (3, 4) or 0 in values.shape or values.dtype.kind not in "iufb":
        raise UserError(f"to_levels: values of shape {values.shape} and dtype {values.dtype} must be numbers (x, y, z[, channels]).")
    limits = check_intensities("to_levels: intensities", intensities)
    channels = (values if values.ndim == 4 else values[..., None]).astype(np.float32)
    return np.stack([_levels(channels[..., i], limits) for i in range(channels.shape[-1])], -1)


def check_intensities(what: str, intensities: Any) -> tuple[float, ...]:
    """Return limits of intensities, () or (low, high).

    Raises:
        UserError: if they are neither; `what` is what the message calls them.
    """
    given: tuple[Any, ...] = tuple(intensities) if isinstance(intensities, tuple | list) else (None,)
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in given)
    if not numbers or len(given) not in (0, 2) or (given and not given[0] < given[1]):
        raise UserError(f"{what}={intensities!r} must be the intensities of black and white, the lower one first, or () for percentiles.")
    return tuple(map(float, given))


def _levels(values: np.ndarray, limits: tuple[float, ...]) -> np.ndarray:
    low, high = limits or np.percentile(values, PERCENTILES).tolist()
    if not low < high:
        low, high = float(values.min()), float(values.max())
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    return np.round(np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1) * 255).astype(np.uint8)


def pad_to(volume: np.ndarray, shape: Sequence[int], *, fill: int = MIDDLE_GREY) -> np.ndarray:
    """Pad an array (x, y, z, ...) at the far ends of its three axes to at least `shape`."""
    missing = [max(0, size - n) for n, size in zip(volume.shape, shape)]
    return np.pad(volume, [(0, more) for more in missing] + [(0, 0)] * (volume.ndim - 3), constant_values=fill)


def _nibabel() -> Any:
    try:
        import nibabel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f'volumes need nibabel, which cannot be imported ({reason(error)}); pip install "nibabel>=5".') from error
    return nibabel


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a NIfTI file; its values are read when they are used."""
    file = check_file(path, KIND)
    if not is_volume(file):
        raise UserError(f"{path} is not named like {KIND}; convert it, or correct its name.")
    nibabel = _nibabel()
    try:
        image = nibabel.load(file)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise UserError(f"{path} is not NIfTI, but {type(image).__name__}; convert it.")
        claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
        if claimed > _COMPRESSED * file.stat().st_size:
            raise UserError(f"{path} claims {image.shape} voxels, more than its {file.stat().st_size} bytes can hold; copy it again.")
        yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} has more voxels than fit into memory; cut it into pieces.") from error
    except Exception as error:  # of nibabel, gzip and zlib
        raise UserError(f"{path} cannot be read as {KIND} ({reason(error)}); repair, replace or remove it.") from error


def _shape(shape: Sequence[int], path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return the shape of a file without the empty axes that some programs add, or raise UserError if it is not that of a volume."""
    kept = tuple(shape)
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    # A file of vectors has an empty axis of time before that of channels.
    kept = (*kept[:3], kept[4]) if len(kept) == 5 and kept[3] == 1 else kept
    if len(kept) not in (3, 4) or 0 in kept:
        raise UserError(f"{path} has the shape {tuple(shape)}; give a volume (x, y, z) or (x, y, z, channels).")
    return kept


def _orientation(affine: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    turned = _nibabel().orientations.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if np.isnan(turned).any():
        raise UserError(f"{path} has an affine that does not say where its axes point; correct its header.")
    return turned
