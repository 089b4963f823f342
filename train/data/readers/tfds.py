"""Any image set of TFDS with a class label or a mask, read without TensorFlow."""

import dataclasses
from typing import Any

import numpy as np

from dilax.errors import UserError, did_you_mean
from train.data.readers import downloads as prepare
from train.data.readers.masks import MaskReader, decode_mask
from train.data.source import Record, decode

_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split: `records` is TFDS's data source, its images left encoded; `channels` and `image_size` are as for `decode`."""

    records: Any
    channels: int
    image_size: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Record]:
        records = self.records.__getitems__(indices)
        return [{"image": decode(record["image"], self.channels, self.image_size), "label": int(record["label"])} for record in records]

    def read_labels(self) -> np.ndarray:
        """Return all the labels, int32 (n,); reads the whole file, but decodes no image."""
        chunks = [range(start, min(start + _CHUNK, len(self))) for start in range(0, len(self), _CHUNK)]
        return np.array([record["label"] for chunk in chunks for record in self.records.__getitems__(list(chunk))], np.int32)


def open_tfds(name: str, data_dir: str, download: bool, image_size: int) -> tuple[TfdsSource, TfdsSource, tuple[str, ...]]:
    """Return train, test (the split test if it has labels, else validation) and the class names of a set of TFDS.

    Args:
        name: As TFDS writes it: cifar10, or name/config:version.
        data_dir: As `prepare.root`.
        download: Prepare it when it is missing.
        image_size: As `decode`.

    Raises: UserError: if it is missing, or is not a set of labelled images in array_record files.
    """
    builder = _prepared(name, data_dir, download)
    features, splits = builder.info.features, builder.info.splits
    channels, class_names = _image_and_label(name, features)
    found = {
        split: TfdsSource(_records(builder, split, ("image",)), channels, image_size)
        for split in ("train", "test", "validation")
        if split in splits
    }
    # Some sets, ImageNet among them, keep the labels of the test split back: all are -1.
    tests = [found[split] for split in ("test", "validation") if split in found and found[split][0]["label"] >= 0]
    if "train" not in found or not tests:
        raise UserError(
            f'data.name="{name}" has the splits {sorted(splits)}; training needs "train", and "test" or "validation" with labels.'
        )
    return found["train"], tests[0], class_names


@dataclasses.dataclass(frozen=True)
class TfdsMaskSource:
    """A split of images and masks, both left encoded in `records`, in the fields of these names; `channels` is as for `decode`."""

    records: Any
    image_field: str
    mask_field: str
    channels: int
    reader: MaskReader
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Record]:
        records = self.records.__getitems__(indices)
        pairs = [(decode(r[self.image_field], self.channels, 0), decode_mask(r[self.mask_field])) for r in records]
        return [self.reader.record(*pair, f"{self.name}[{index}]") for index, pair in zip(indices, pairs, strict=True)]


def open_tfds_masks(data: Any, ignored: int) -> tuple[dict[str, TfdsMaskSource], tuple[str, ...]]:
    """Return the splits train, validation and test, as far as they are there and have masks, and the class names of a set of TFDS.

    Where no test split has masks, as in sets that keep them back, the validation split is the test.

    Args:
        data: The part `data` of a config.
        ignored: Label of pixels that count nowhere.

    Raises: UserError: if it is missing, has no such fields, names no classes, or is not in array_record files.
    """
    builder = _prepared(data.name, data.dir, data.download)
    fields = data.image_field or "image", data.mask_field or "segmentation_mask"
    features: Any = builder.info.features
    channels = _image_channels(data.name, features, fields)
    class_names = tuple(data.class_names) or _mask_names(data, features[fields[1]])
    reader = MaskReader(len(class_names), tuple(data.mask_values), ignored, data.image_size)
    found = {
        split: TfdsMaskSource(_records(builder, split, fields), *fields, channels, reader, f"{data.name}/{split}")
        for split in ("train", "validation", "test")
        if split in builder.info.splits
    }
    if "test" in found and "validation" in found and (found["test"][0]["label"] == ignored).all():
        del found["test"]
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if "train" not in found or "test" not in found:
        raise UserError(
            f'data.name="{data.name}" has the splits {sorted(builder.info.splits)}; training needs "train", and "test" or "validation".'
        )
    return found, class_names


def _image_channels(name: str, features: Any, fields: tuple[str, str]) -> int:
    """Return the channels of the image, and check that both fields are uint8 images."""
    import tensorflow_datasets as tfds

    known: dict[str, Any] = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    images = sorted(key for key, feature in known.items() if isinstance(feature, tfds.features.Image))
    for key, field in zip(("image_field", "mask_field"), fields):
        if field not in images:
            raise UserError(
                f'data.name="{name}" has no image feature "{field}"; it has {images}: set config.data.{key}.{did_you_mean(field, images)}'
            )
        if known[field].np_dtype != np.uint8:
            raise UserError(f'data.name="{name}" has {np.dtype(known[field].np_dtype)} in "{field}"; only uint8 can be read.')
    return known[fields[0]].shape[-1] or 3


def _mask_names(data: Any, feature: Any) -> tuple[str, ...]:
    """Return the class names that the mask's feature or data.mask_values give."""
    if data.mask_values:
        return tuple(f"class {value}" for value in data.mask_values)
    count = getattr(feature, "num_classes", None)
    if not count:
        raise UserError(f'data.name="{data.name}" does not say which classes its masks have; list them in config.data.class_names.')
    return tuple(feature.names)


def _prepared(name: str, data_dir: str, download: bool) -> Any:
    """Return the builder of a prepared set, prepared here where allowed."""
    directory = prepare.root(data_dir)
    if (builder := prepare.find(name, directory)) is not None:
        return builder
    prepare.check_known(name, directory)
    reason = "data.download is off"
    if download:
        try:
            prepare.prepare(name, data_dir)
            return prepare.find(name, directory)
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
    import tensorflow_datasets as tfds

    try:  # TFDS's own decoding takes twice as long
        return builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in images}, file_format="array_record")
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{builder.data_path} is not in array_record files, and others have no random access; "
            f"prepare it into another directory: python -m train.prepare {builder.name} --data_dir=DIR"
        ) from error
