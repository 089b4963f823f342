"""A folder of image files, one sub-folder a class."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from dilax.errors import UserError
from train.data.source import TEST_SPLIT, Record, check_depth, check_sizes, decode, stratified

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_TEST_FOLDERS = ("test", "val", "validation")
_GREY = {"1", "L", "LA"}


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files with `labels`, int32 (n,); `channels` and `image_size` are as for `decode`."""

    files: tuple[pathlib.Path, ...]
    labels: np.ndarray
    channels: int
    image_size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        with naming(self.files[index]):
            image = decode(self.files[index], self.channels, self.image_size)
        return {"image": image, "label": int(self.labels[index])}


def open_folder(data_dir: str, image_size: int) -> tuple[FolderSource, FolderSource, tuple[str, ...]]:
    """Return train, test and the class names of a folder of images.

    `data_dir` holds train/ and one of test/, val/, validation/ (the first that is there is the test split), or else the
    classes themselves, of which a fixed fifth is the test split. A class is a sub-folder; its name is the class name, in sorted order.
    Images are grey if all of them are, else RGB.

    Raises: UserError: if a folder is missing or empty, the classes of the splits differ, or a file is no image.
    """
    directory = pathlib.Path(data_dir).expanduser()
    if not data_dir or not directory.is_dir():
        raise UserError(f'data.name="folder" needs data.dir to be a folder of images; "{data_dir}" is not a folder.')
    folders = [directory / "train", *(directory / name for name in _TEST_FOLDERS if (directory / name).is_dir())][:2]
    if not folders[0].is_dir():
        return _fixed_split(directory, image_size)
    if len(folders) == 1:
        raise UserError(f"{directory} has train/ but none of test/, val/, validation/; add one, or set data.dir to {folders[0]}.")
    classes = [_class_names(folder) for folder in folders]
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise UserError(f"{folders[0]} and {folders[1]} must hold the same classes; only one of them has: {', '.join(odd[:5])}.")
    (files, labels), (test_files, test_labels) = (_files(folder, classes[0]) for folder in folders)
    channels = image_channels(files + test_files, image_size)
    train = FolderSource(files, labels, channels, image_size)
    return train, FolderSource(test_files, test_labels, channels, image_size), classes[0]


def _fixed_split(directory: pathlib.Path, image_size: int) -> tuple[FolderSource, FolderSource, tuple[str, ...]]:
    class_names = _class_names(directory)
    files, labels = _files(directory, class_names)
    test = stratified(labels, round(len(files) / 5), TEST_SPLIT)
    if not test.any():
        raise UserError(f"{directory} holds {len(files)} images, too few to keep a fifth for the test; add images, or a folder test/.")
    channels = image_channels(files, image_size)
    train, held = (
        FolderSource(tuple(files[i] for i in np.flatnonzero(chosen)), labels[chosen], channels, image_size) for chosen in (~test, test)
    )
    return train, held, class_names


def _class_names(directory: pathlib.Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise UserError(f"{directory} holds no sub-folders; put the images of each class into a sub-folder that bears its name.")
    return names


def _files(directory: pathlib.Path, class_names: tuple[str, ...]) -> tuple[tuple[pathlib.Path, ...], np.ndarray]:
    """Return the image files below each class, and their labels, int32 (n,)."""
    by_class = [
        sorted(path for path in (directory / name).rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        for name in class_names
    ]
    for name, files in zip(class_names, by_class, strict=True):
        if not files:
            raise UserError(f"{directory / name} holds no images ({', '.join(sorted(SUFFIXES))}); add some, or remove the folder.")
    labels = np.repeat(np.arange(len(by_class), dtype=np.int32), [len(files) for files in by_class])
    return tuple(path for files in by_class for path in files), labels


def image_channels(files: tuple[pathlib.Path, ...], image_size: int) -> int:
    """Return 1 if every image is grey, else 3; raises UserError where they differ in size and `image_size` is 0."""
    headers = map(_header, files)
    if image_size:
        return 1 if all(grey for grey, _ in headers) else 3  # stops at the first colour image
    grey, sizes = zip(*headers, strict=True)
    check_sizes(set(sizes))
    return 1 if all(grey) else 3


def _header(file: pathlib.Path) -> tuple[bool, tuple[int, int]]:
    """Return whether the image is grey, and (height, width)."""
    from PIL import Image

    with naming(file), Image.open(file) as image:
        check_depth(image, file)
        return image.mode in _GREY, (image.height, image.width)


@contextlib.contextmanager
def naming(file: pathlib.Path) -> Iterator[None]:
    """Turn what PIL raises for a torn or foreign file into an error that names it."""
    from PIL import Image

    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as an image ({str(error).splitlines()[0]}); repair or remove it.") from error
