"""Any image set of TFDS with a class label, read without TensorFlow."""

import dataclasses
from typing import Any

import numpy as np

from dilax.errors import UserError
from train.data import prepare
from train.data.sources import Record, decode

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
        split: TfdsSource(_records(builder, split), channels, image_size) for split in ("train", "test", "validation") if split in splits
    }
    # Some sets, ImageNet among them, keep the labels of the test split back: all are -1.
    tests = [found[split] for split in ("test", "validation") if split in found and found[split][0]["label"] >= 0]
    if "train" not in found or not tests:
        raise UserError(
            f'data.name="{name}" has the splits {sorted(splits)}; training needs "train", and "test" or "validation" with labels.'
        )
    return found["train"], tests[0], class_names


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


def _records(builder: Any, split: str) -> Any:
    import tensorflow_datasets as tfds

    try:  # TFDS's own decoding takes twice as long
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}, file_format="array_record")
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{builder.data_path} is not in array_record files, and others have no random access; "
            f"prepare it into another directory: python -m train.prepare {builder.name} --data_dir=DIR"
        ) from error
