"""Images with boxes of objects: boxes are checked, and fitted together with their image."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dilax.errors import UserError, did_you_mean
from dilax.inputs import fit_inside, inner_size
from train.data.source import Record

NAMED = 3  # boxes that a message names


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects that are marked in one image.

    Attributes:
        where: What messages call the image or its annotation.
        size: (height, width) of the image in pixels.
        boxes: float32 (n, 4), (x_min, y_min, x_max, y_max) in pixels: edges, so that the box of the whole image is (0, 0, width, height).
        names: The class of each, n of them.
        crowd: bool (n,), which of them are not learned, and neither right nor wrong to detect: crowds of COCO, difficult objects of VOC.
    """

    where: str
    size: tuple[int, int]
    boxes: np.ndarray
    names: tuple[str, ...]
    crowd: np.ndarray


@dataclasses.dataclass(frozen=True)
class Marked:
    """The images of a split, with their objects.

    Attributes:
        objects: Those of each image.
        read: Returns the images at a list of indices, each uint8 (height, width, channels). Worker processes call it, so it must be
            picklable.
        files: Name of the file of each image; () if they are not known.
    """

    objects: Sequence[Objects]
    read: Callable[[list[int]], list[np.ndarray]]
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BoxReader:
    """How the boxes of a dataset become records.

    Attributes:
        classes: Names of the classes.
        most: Number of boxes that each record has room for.
        shape: (height, width) that images are scaled to; () leaves them as they are.
        stretch: Whether they are scaled to that very size, whatever their aspect, instead of being padded.
    """

    classes: tuple[str, ...]
    most: int
    shape: tuple[int, ...]
    stretch: bool

    def record(self, image: np.ndarray, objects: Objects) -> Record:
        """Return {"image": uint8 (height, width, channels)} with the fields of `fields`.

        Args:
            image: uint8 (height, width, channels).
            objects: What is marked in it.

        Raises:
            UserError: if the image has another size than the boxes were made for.
        """
        if image.shape[:2] != objects.size:
            theirs, ours = (f"{width} x {height}" for height, width in (objects.size, image.shape[:2]))
            raise UserError(f"{objects.where} marks an image of {theirs} pixels, and its image has {ours}; give the boxes of that image.")
        height, width = self.shape or image.shape[:2]
        return {"image": fit_inside(image, height, width, stretch=self.stretch), **self.fields(objects)}

    def fields(self, objects: Objects) -> Record:
        """Return the fields of a record that do not need its image.

        They are "boxes", float32 (most, 4), in pixels of the scaled image; "classes", int32 (most,); "box_mask", bool (most,), which
        exist; and "crowd", bool (most,), which of these are as `Objects.crowd` says.
        """
        height, width = inner_size(objects.size, *(self.shape or objects.size), stretch=self.stretch)
        down, across = height / objects.size[0], width / objects.size[1]
        room = self.most - len(objects.names)
        return {
            "boxes": np.pad(objects.boxes * np.array([across, down, across, down], np.float32), ((0, room), (0, 0))),
            "classes": np.pad(np.array([self.classes.index(name) for name in objects.names], np.int32), (0, room)),
            "box_mask": np.arange(self.most) < len(objects.names),
            "crowd": np.pad(objects.crowd, (0, room)),
        }


def inside(splits: Mapping[str, Sequence[Objects]]) -> dict[str, list[Objects]]:
    """Return objects clipped to their images, without those that have no area there; lines on stderr count both, and name the first."""
    dropped, clipped, total, kept = [], [], 0, {}
    for split, images in splits.items():
        kept[split] = []
        for one in images:
            height, width = one.size
            boxes = np.clip(one.boxes, 0, np.array([width, height, width, height], np.float32))
            good = np.all(boxes[:, 2:] > boxes[:, :2], 1)
            total += len(boxes)
            dropped += [f"{one.where} {_shown(box)}" for box in one.boxes[~good]]
            clipped += [f"{one.where} {_shown(box)}" for box in one.boxes[good & (boxes != one.boxes).any(1)]]
            names = tuple(name for name, each in zip(one.names, good.tolist()) if each)
            kept[split].append(dataclasses.replace(one, boxes=boxes[good], names=names, crowd=one.crowd[good]))
    for found, what in ((dropped, "left out, since they have no area inside their image"), (clipped, "cut off at the edge of their image")):
        if found:
            some = "; ".join(found[:NAMED]) + "; ..." * (len(found) > NAMED)
            print(f"note: {len(found)} of {total} boxes are {what}: {some}", file=sys.stderr)
    return kept


def check_classes(splits: Mapping[str, Sequence[Objects]], names: tuple[str, ...]) -> None:
    """Raise UserError if an object has a class that is not among `names`; name the classes without any box for training on stderr."""
    for images in splits.values():
        for one in images:
            for name in one.names:
                if name not in names:
                    raise UserError(
                        f"{one.where} has an object of the class {name!r}, which is not one of the {len(names)} classes "
                        f"{', '.join(names[:10])}{', ...' * (len(names) > 10)}; correct it, or name all classes in "
                        f"config.data.class_names.{did_you_mean(name, names)}"
                    )
    present = {name for one in splits["train"] for name in one.names}
    if absent := [name for name in names if name not in present]:
        print(f"note: the training split has no box of {', '.join(absent[:10])}{', ...' * (len(absent) > 10)}.", file=sys.stderr)


def largest_count(splits: Mapping[str, Sequence[Objects]]) -> int:
    """Return the largest number of boxes in an image of any split, at least 1."""
    return max([1, *(len(one.names) for images in splits.values() for one in images)])


def _shown(box: np.ndarray) -> str:
    return f"({', '.join(f'{edge:g}' for edge in box.tolist())})"
