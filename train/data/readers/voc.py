"""Boxes as Pascal VOC stores them: a folder of images, and one of .xml files with the objects of each."""

import pathlib
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from dilax.errors import UserError
from dilax.files import read_bytes, user_path
from dilax.inputs import open_image
from train.data.readers.boxes import Objects
from train.data.readers.files import by_stem
from train.data.readers.images import SUFFIXES
from train.data.readers.lists import read_lists
from train.data.splits import origin_of, with_fixed_test

IMAGES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
Pairs = list[tuple[pathlib.Path, Objects]]  # image files with their objects


def read_voc(directory: pathlib.Path, lists: str, *, validation: bool) -> tuple[dict[str, Pairs], str]:
    """Return the images of each split with their objects, and the origin.

    The folder holds JPEGImages/ and Annotations/, with a file NAME.xml for each image NAME, in which `xmin` and the others are taken as
    edges in pixels. Of the lists in ImageSets/Main/, those of train.txt, val.txt and test.txt are read; without lists, a fixed fifth of the
    images is the test split. Objects that are marked as difficult are as `Objects.crowd` says (Everingham et al. 2010, section 4.2).

    Args:
        directory: The folder.
        lists: Folder of the lists below it; "" is ImageSets/Main.
        validation: As for `train.data.splits.divided`.

    Raises:
        UserError: if a folder, an image or an annotation is missing, or an annotation is malformed.
    """
    hint = f'data.name="voc_xml" reads {IMAGES}/ and {ANNOTATIONS}/ below config.data.dir'
    images = by_stem(directory / IMAGES, SUFFIXES, "annotation", hint=hint)
    annotations = by_stem(directory / ANNOTATIONS, {".xml"}, "image", kind="annotations", hint=hint)

    def lacks(stem: str) -> pathlib.Path | None:
        return directory / IMAGES if stem not in images else directory / ANNOTATIONS if stem not in annotations else None

    folder = directory / user_path(lists or LISTS)
    if lists or folder.is_dir():
        stems, origin = read_lists(folder, lacks, validation=validation)
        origin = f"{directory}, lists {origin}"
    else:
        for stem in images:
            if missing := lacks(stem):
                raise UserError(f"{images[stem]} has no {stem}.xml in {missing}; mark its objects, or remove it.")
        stems = with_fixed_test(list(images), directory, "images")
        origin = origin_of(directory, {})
    return {split: [(images[stem], read_xml(annotations[stem], images[stem])) for stem in part] for split, part in stems.items()}, origin


def read_xml(file: pathlib.Path, image: pathlib.Path) -> Objects:
    """Return the objects of an annotation; where it does not give the size of the image, that is read from `image`.

    Raises:
        UserError: if it is malformed.
    """
    try:
        root = ElementTree.fromstring(read_bytes(file, "an annotation of Pascal VOC"))
    except ElementTree.ParseError as error:
        raise UserError(f"{file} is not XML ({error}); repair it, or export it again.") from error
    if root.tag != "annotation":
        raise UserError(f"{file} has <{root.tag}> at its root, and an annotation of Pascal VOC has <annotation>; export it as such.")
    boxes, names, crowd = [], [], []
    for number, one in enumerate(root.iter("object"), 1):
        name = (one.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{file}: object {number} has no <name>; name its class.")
        corners = [_number(one.findtext(f"bndbox/{corner}")) for corner in _CORNERS]
        if None in corners:
            missing = _CORNERS[corners.index(None)]
            raise UserError(f"{file}: object {number} ({name}) has no number as <bndbox><{missing}>; correct it.")
        names.append(name)
        boxes.append(corners)
        crowd.append((one.findtext("difficult") or "").strip() == "1")
    size = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    height, width = (int(side or 0) for side in size)
    if not height or not width:
        with open_image(image) as opened:
            height, width = opened.height, opened.width
    return Objects(str(file), (height, width), np.array(boxes, np.float32).reshape(-1, 4), tuple(names), np.array(crowd, bool))


def _number(text: str | None) -> Any:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None
