"""A folder of volumes and a folder of masks, NIfTI files of the same names; volumes of any sizes, padded to one."""

import collections
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dilax.errors import UserError
from dilax.files import user_path
from dilax.volumes import SUFFIXES, check_intensities, pad_to, read_header, read_volume, to_levels
from train.data.readers.files import intact
from train.data.readers.masks import MaskReader, count_classes
from train.data.readers.pairs import Layout, Pairs, split_pairs
from train.data.source import Lazy, Record, Source

_TOLERANCE = 1e-3  # millimetres by which the affines of a volume and of its mask may differ: some programs round them
_SPREAD = 1.05  # the ratio of the largest to the smallest spacing along an axis above which a line says so


def open_volume_folder(data: Any, ignored: int) -> tuple[dict[str, Source], tuple[str, ...], str]:
    """Return {split: source}, the class names and the origin of a folder of volumes and masks.

    The layouts are those of `mask_folders.open_mask_folder`, with folders named `images` and `labels` unless data.image_field and
    data.mask_field name others. All volumes are turned to one orientation, and padded at their far ends to the size of the largest along
    each axis. Intensities become the levels 0 to 255, as data.intensities says.

    Records are {"image": uint8 (x, y, z, channels), "label": uint8 (x, y, z), `ignored` in the padding, "spacing": float32 (3,), the
    millimetres between neighbouring voxels}.

    Args:
        data: The part `data` of a config.
        ignored: Label of voxels that count neither in the loss nor in the metrics.

    Raises: UserError: if a folder, a file or a mask is missing or does not fit, or the number of classes cannot be counted.
    """
    check_intensities("config.data.intensities", data.intensities)
    directory = user_path(data.dir)
    if not data.dir or not directory.is_dir():
        raise UserError(f'data.name="volumes" needs data.dir to be a folder of images/ and labels/; "{data.dir}" is not a folder.')
    names = (data.image_field or "images", data.mask_field or "labels")
    layout = Layout(names, SUFFIXES, "volumes", data.lists, validation=bool(data.validation), test=data.test)
    pairs, origin = split_pairs(directory, layout)
    pairs = {split: tuple(intact(part, _read_both, data.on_bad, f"volumes for {split}")) for split, part in pairs.items()}
    shapes = _shapes([pair for part in pairs.values() for pair in part])
    class_names = tuple(data.class_names) or count_classes((_read_mask(file)[0] for _, file in pairs["train"]), data.mask_values, ignored)
    reader = MaskReader(len(class_names), tuple(data.mask_values), ignored, 0)
    largest = tuple(max(sizes) for sizes in zip(*shapes))
    read = functools.partial(_record, largest, reader, tuple(data.intensities))
    return {split: _source(part, directory, read) for split, part in pairs.items()}, class_names, origin


def _source(files: Pairs, directory: pathlib.Path, read: Any) -> Lazy:
    names = tuple(str(volume.relative_to(directory)) for volume, _ in files)
    return Lazy(len(files), functools.partial(_read, files, read), files=names)


def _read(files: Pairs, read: Any, indices: list[int]) -> list[Record]:
    return [read(*files[index]) for index in indices]


def _record(
    shape: Sequence[int], reader: MaskReader, intensities: tuple[float, ...], volume_file: pathlib.Path, mask_file: pathlib.Path
) -> Record:
    """Return the record of a volume and its mask, padded to `shape`."""
    volume = read_volume(volume_file)
    mask, affine = _read_mask(mask_file)
    if mask.shape != volume.values.shape[:3]:
        sizes = ("x".join(map(str, one)) for one in (mask.shape, volume.values.shape[:3]))
        raise UserError("{}: the mask has {} voxels, its volume {}; make them the same size.".format(mask_file, *sizes))
    if not np.allclose(affine, volume.affine, atol=_TOLERANCE, rtol=0):
        raise UserError(
            f"{mask_file}: the affine of the mask differs from that of its volume by up to {np.abs(affine - volume.affine).max():.3g} mm, "
            "so that they are not of the same place; resample the mask to its volume, or correct its header."
        )
    return padded_record(
        to_levels(volume.values, intensities=intensities), reader.labels(mask, str(mask_file)), volume.spacing, shape, reader.ignored
    )


def padded_record(levels: np.ndarray, labels: np.ndarray, spacing: Sequence[float], shape: Sequence[int], ignored: int) -> Record:
    """Return the record of a volume, uint8 (x, y, z, channels), and its labels, uint8 (x, y, z), padded to `shape`."""
    return {"image": pad_to(levels, shape), "label": pad_to(labels, shape, fill=ignored), "spacing": np.asarray(spacing, np.float32)}


def _read_mask(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the class numbers of a mask, uint8 (x, y, z), and its affine."""
    mask = read_volume(file)
    if mask.values.ndim != 3:
        raise UserError(f"{file} has {mask.values.shape[3]} channels; a mask holds one class number per voxel.")
    numbers = np.round(mask.values)
    if (wrong := mask.values[(numbers != mask.values) | (numbers < 0) | (numbers > 255)]).size:
        raise UserError(f"{file} holds the number {wrong[0]:g}; a mask holds class numbers, whole and up to 255.")
    return numbers.astype(np.uint8), mask.affine


def _read_both(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
    read_volume(pair[0])
    _read_mask(pair[1])


def _shapes(pairs: Sequence[tuple[pathlib.Path, pathlib.Path]]) -> list[tuple[int, ...]]:
    """Return the shape (x, y, z) of each volume, all of which have the same channels; a line on stderr says if their spacings differ."""
    headers = [read_header(volume) for volume, _ in pairs]
    shapes = [shape for shape, _ in headers]
    channels = [(*shape, 1)[3] for shape in shapes]
    if len(set(channels)) > 1:
        usual = collections.Counter(channels).most_common(1)[0][0]
        odd = next(i for i, count in enumerate(channels) if count != usual)
        raise UserError(f"{pairs[odd][0]} has {channels[odd]} channels, and other volumes {usual}; give volumes of the same channels.")
    _note_spacings([spacing for _, spacing in headers])
    return [shape[:3] for shape in shapes]


def _note_spacings(spacings: Sequence[tuple[float, ...]]) -> None:
    """Say on stderr if the spacings of volumes differ."""
    low, high = np.min(spacings, axis=0), np.max(spacings, axis=0)
    if (high > _SPREAD * low).any():
        words = [(f"{least:.3g}", f"{most:.3g}") for least, most in zip(low.tolist(), high.tolist())]
        ranges = " x ".join(least if least == most else f"{least} to {most}" for least, most in words)
        print(
            f"note: voxels measure {ranges} mm, depending on the file, and volumes are not resampled; "
            "resample them to one spacing if sizes in mm matter.",
            file=sys.stderr,
        )
