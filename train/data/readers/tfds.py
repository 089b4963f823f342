"""Any image set of TensorFlow Datasets (TFDS) with class labels, masks or boxes, read without TensorFlow."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from dilax.errors import UserError, did_you_mean
from dilax.inputs import open_image
from train.data.readers import downloads
from train.data.readers.boxes import Marked, Objects
from train.data.readers.images import decode
from train.data.readers.masks import MaskReader, decode_mask
from train.data.source import Lazy, Record
from train.data.splits import split_names, taken_parts

_CHUNK = 4096  # records whose labels are read at once


def open_tfds(
    name: str, data_dir: str, download: bool, image_size: int, *, validation: bool = True
) -> tuple[dict[str, Lazy], tuple[str, ...], str]:
    """Return {split: source}, the class names and the origin of a set of labelled images.

    The splits are train, test and perhaps validation. If the test split is missing or has no labels, "validation" is the test split.
    Records are {"image": uint8 (height, width, channels), "label": int32}.

    Args:
        name: As TFDS writes it: cifar10, or name/config:version.
        data_dir: As `downloads.root`.
        download: Prepare the set if it is missing.
        image_size: As `decode`.
        validation: Whether a validation split beside a test split is wanted.

    Raises: UserError: if it is missing, or is not a set of labelled images in array_record files.
    """
    builder = _prepared(name, data_dir, download)
    channels, class_names = _image_and_label(name, builder.info.features)
    found, names = {}, split_names(builder.info.splits, name)
    for split, own in names.items():
        records = _records(builder, own, ("image",))
        read = functools.partial(_read_labelled, records, channels, image_size)
        found[split] = Lazy(len(records), read, {"label": functools.partial(_read_labels, records)})
    # Some sets, ImageNet among them, do not publish the labels of the test split: all are -1.
    known = {split: source for split, source in found.items() if source[0]["label"] >= 0}
    if "test" not in known and "validation" in known:
        known["test"], names["test"] = known.pop("validation"), names["validation"]
    if not {"train", "test"} <= known.keys():
        raise UserError(
            f'data.name="{name}" has the splits {sorted(builder.info.splits)}; training needs "train", and "test" or "validation" '
            "with labels."
        )
    if not validation:
        known.pop("validation", None)
    return known, class_names, _origin(builder, known, names)


def _read_labelled(records: Any, channels: int, image_size: int, indices: list[int]) -> list[Record]:
    read = records.__getitems__(indices)
    return [{"image": decode(record["image"], channels, image_size), "label": np.int32(record["label"])} for record in read]


def _read_labels(records: Any) -> np.ndarray:
    """Return all labels, int32 (n,); reads the whole file, but decodes no image."""
    chunks = [range(start, min(start + _CHUNK, len(records))) for start in range(0, len(records), _CHUNK)]
    return np.array([record["label"] for chunk in chunks for record in records.__getitems__(list(chunk))], np.int32)


def open_tfds_masks(data: Any, ignored: int) -> tuple[dict[str, Lazy], tuple[str, ...], str]:
    """Return {split: source}, the class names and the origin of a set of images and masks.

    The splits are train, validation and test, as far as they are there. If there is no test split with masks, the validation split is the
    test split. Records are as those of `MaskReader.record`.

    Args:
        data: The part `data` of a config.
        ignored: Label of pixels that count neither in the loss nor in the metrics.

    Raises: UserError: if it is missing, has no such fields, names no classes, or is not in array_record files.
    """
    builder = _prepared(data.name, data.dir, data.download)
    fields = data.image_field or "image", data.mask_field or "segmentation_mask"
    features: Any = builder.info.features
    channels = _image_channels(data.name, features, fields)
    class_names = tuple(data.class_names) or _mask_names(data, features[fields[1]])
    reader = MaskReader(len(class_names), tuple(data.mask_values), ignored, data.image_size)
    found, names = {}, split_names(builder.info.splits, data.name)
    for split, own in names.items():
        records = _records(builder, own, fields)
        found[split] = Lazy(len(records), functools.partial(_read_masked, records, fields, channels, reader, f"{data.name}/{own}"))
    # Some sets do not publish the masks of the test split.
    if "test" in found and "validation" in found and (found["test"][0]["label"] == ignored).all():
        del found["test"]
    if "test" not in found and "validation" in found:
        found["test"], names["test"] = found.pop("validation"), names["validation"]
    if "test" not in found:
        raise UserError(
            f'data.name="{data.name}" has the splits {sorted(builder.info.splits)}; training needs "train", and "test" or "validation".'
        )
    if not data.validation:
        found.pop("validation", None)
    return found, class_names, _origin(builder, found, names)


def open_tfds_boxes(data: Any) -> tuple[dict[str, Marked], tuple[str, ...], str]:
    """Return {split: images with their objects}, the class names and the origin of a set of images with boxes, such as "coco/2017".

    The splits are as those of `open_tfds_masks`; a test split without any box is not one. All records are read once, but no image is
    decoded.

    Args:
        data: The part `data` of a config.

    Raises: UserError: if it is missing, has no boxes with labels, or is not in array_record files.
    """
    builder = _prepared(data.name, data.dir, data.download)
    features: Any = builder.info.features
    known: dict[str, Any] = dict(features)
    objects: Any = getattr(known.get("objects"), "feature", {})  # that of each object in a sequence
    if not {"bbox", "label"} <= set(objects):
        raise UserError(f'data.name="{data.name}" needs the feature "objects" with "bbox" and "label"; it has {sorted(known)}.')
    channels, class_names = _image_channels(data.name, features, ("image", "image")), tuple(objects["label"].names)
    found, names = {}, split_names(builder.info.splits, data.name)
    for split, own in names.items():
        records = _records(builder, own, ("image",))
        chunks = [range(start, min(start + _CHUNK, len(records))) for start in range(0, len(records), _CHUNK)]
        marked = [
            _objects(record, class_names, f"{data.name}/{own}[{i}]") for c in chunks for i, record in zip(c, records.__getitems__(list(c)))
        ]
        found[split] = Marked(marked, functools.partial(_read_images, records, channels), ())
    if "test" in found and "validation" in found and not any(one.names for one in found["test"].objects):
        del found["test"]
    if "test" not in found and "validation" in found:
        found["test"], names["test"] = found.pop("validation"), names["validation"]
    if not {"train", "test"} <= found.keys():
        raise UserError(
            f'data.name="{data.name}" has the splits {sorted(builder.info.splits)}; training needs "train", and "test" or "validation".'
        )
    if not data.validation:
        found.pop("validation", None)
    return found, class_names, _origin(builder, found, names)


def _objects(record: Any, class_names: tuple[str, ...], where: str) -> Objects:
    """Return the objects of a record, whose boxes are (y_min, x_min, y_max, x_max) in sizes of the image."""
    objects = record["objects"]
    with open_image(record["image"]) as image:
        height, width = image.height, image.width
    boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]] * np.array([width, height, width, height], np.float32)
    crowd = np.zeros(len(boxes), bool)
    for name in ("is_crowd", "is_difficult"):
        crowd |= np.asarray(objects.get(name, crowd), bool)
    return Objects(where, (height, width), boxes, tuple(class_names[label] for label in np.asarray(objects["label"]).tolist()), crowd)


def _read_images(records: Any, channels: int, indices: list[int]) -> list[np.ndarray]:
    return [decode(record["image"], channels, 0) for record in records.__getitems__(indices)]


def _origin(builder: Any, found: Mapping[str, object], names: dict[str, str]) -> str:
    """Return the folder of a set, and which of its splits is taken for which; `names` are its own."""
    return f"{builder.data_path} ({taken_parts({split: names[split] for split in found})})"


def _read_masked(records: Any, fields: tuple[str, str], channels: int, reader: MaskReader, where: str, indices: list[int]) -> list[Record]:
    image, mask = fields
    pairs = [(decode(record[image], channels, 0), decode_mask(record[mask])) for record in records.__getitems__(indices)]
    return [reader.record(*pair, f"{where}[{index}]") for index, pair in zip(indices, pairs, strict=True)]


def _image_channels(name: str, features: Any, fields: tuple[str, str]) -> int:
    """Return the channels of the image, and check that both fields are uint8 images."""
    import tensorflow_datasets as tfds

    known: dict[str, Any] = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    images = sorted(key for key, feature in known.items() if isinstance(feature, tfds.features.Image))
    for key, field in zip(("image_field", "mask_field"), fields):
        if field not in images:
            hint = did_you_mean(field, images)
            raise UserError(f'data.name="{name}" has no image feature "{field}"; it has {images}: set config.data.{key}.{hint}')
        if known[field].np_dtype != np.uint8:
            raise UserError(f'data.name="{name}" has {np.dtype(known[field].np_dtype)} in "{field}"; only uint8 can be read.')
    return known[fields[0]].shape[-1] or 3


def _mask_names(data: Any, feature: Any) -> tuple[str, ...]:
    """Return the class names that the mask's feature or data.mask_values give."""
    if data.mask_values:
        return tuple(f"class {value}" for value in data.mask_values)
    if not getattr(feature, "num_classes", None):
        raise UserError(f'data.name="{data.name}" does not name the classes of its masks; list them in config.data.class_names.')
    return tuple(feature.names)


def _prepared(name: str, data_dir: str, download: bool) -> Any:
    """Return the builder of a prepared set; a missing set is prepared if `download` is set."""
    directory = downloads.root(data_dir)
    if (builder := downloads.find(name, directory)) is not None:
        return builder
    downloads.check_known(name, directory)
    reason = "data.download is off"
    if download:
        try:
            downloads.prepare(name, data_dir)
            return downloads.find(name, directory)
        except UserError as error:
            reason = str(error).rstrip(".")
    raise UserError(
        f'data.name="{name}" is not prepared in {directory}, and {reason}; set --config.data.dir or TFDS_DATA_DIR to where it is, '
        f"{'' if download else 'allow --config.data.download, '}run `python -m train.prepare {name}` where there is a network, or use "
        "--config=configs/digits.py, which needs none."
    )


def _image_and_label(name: str, features: Any) -> tuple[int, tuple[str, ...]]:
    """Return the channels of the images and the class names."""
    import tensorflow_datasets as tfds

    known: dict[str, Any] = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = known.get("image"), known.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f'data.name="{name}" needs the features "image" (Image) and "label" (ClassLabel); it has {sorted(known)}.')
    dtype: Any = image.np_dtype
    shape: Any = image.shape
    if dtype != np.uint8:
        raise UserError(f'data.name="{name}" has images of {np.dtype(dtype)}; only uint8 can be read.')
    return shape[-1] or 3, tuple(label.names)


def _records(builder: Any, split: str, images: tuple[str, ...]) -> Any:
    """Return TFDS's data source of a split, with the fields `images` left encoded: TFDS takes twice as long to decode them."""
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in images}, file_format="array_record")
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{builder.data_path} is not in array_record files, and other formats have no random access; "
            f"prepare it in another directory: python -m train.prepare {builder.name} --data_dir=DIR"
        ) from error
