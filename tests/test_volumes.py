"""NIfTI files: values, orientations and affines there and back, levels, and folders of them; every mistake in one line."""

import gzip
import itertools
import pathlib
import sys
from typing import Any

import nibabel  # pyright: ignore[reportMissingImports]
import numpy as np
import pytest

import dilax
from dilax import volumes
from dilax.errors import UserError
from train.config import default_config
from train.data.image_sets import open_masked
from train.data.source import read

RNG = np.random.default_rng(4)
# All ways to lay out three axes, with unequal spacings.
TURNED = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def affine_of(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, 2.0, 0.5])[:, order] * signs
    affine[:3, 3] = 3, -7, 11
    return affine


def save(path: pathlib.Path, values: np.ndarray, affine: Any = None) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def test_volumes_are_turned_and_labels_turned_back(tmp_path):
    """Whatever the axes of the file, a voxel is at the same place of the turned volume; the oracle follows the affine voxel by voxel."""
    for order, signs in TURNED[::5]:
        affine, values = affine_of(order, signs), RNG.integers(-500, 500, (3, 4, 5)).astype(np.int16)
        volume = volumes.read_volume(save(tmp_path / "x.nii.gz", values, affine))
        assert volume.values.dtype == np.int16 and volume.spacing == (1.0, 2.0, 0.5)
        points = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1) @ affine[:3, :3].T
        steps = np.round((points - points.min((0, 1, 2))) / volume.spacing).astype(int)
        np.testing.assert_array_equal(volume.values[tuple(np.moveaxis(steps, -1, 0))], values)
        assert volumes.read_header(tmp_path / "x.nii.gz") == (volume.values.shape, volume.spacing)
        labels = (volume.values > 0).astype(np.uint8)
        for name in ("y.nii.gz", "y.nii"):
            volumes.write_labels(tmp_path / name, labels, volume)
            again = nibabel.load(tmp_path / name)
            np.testing.assert_array_equal(np.asarray(again.dataobj), values > 0)  # pyright: ignore
            np.testing.assert_allclose(again.affine, affine)  # pyright: ignore
            assert again.get_data_dtype() == np.uint8  # pyright: ignore


def test_the_scaling_of_a_file_and_its_empty_axes(tmp_path):
    image = nibabel.Nifti1Image(RNG.integers(0, 9, (3, 4, 5, 1)).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "x.nii")
    volume = volumes.read_volume(tmp_path / "x.nii")
    assert volume.values.shape == (3, 4, 5)
    np.testing.assert_allclose(volume.values, np.asarray(nibabel.load(tmp_path / "x.nii").dataobj)[..., 0])  # pyright: ignore
    assert volumes.read_volume(save(tmp_path / "y.nii", np.zeros((3, 4, 5, 1, 2)))).values.shape == (3, 4, 5, 2)


@pytest.mark.parametrize("scale", [1.0, 1.7e6, 1e-3])
def test_levels_do_not_depend_on_the_units(scale):
    values = RNG.gamma(2.0, size=(7, 8, 9, 2))
    found = volumes.to_levels((scale * values).astype(np.float32))
    low, high = np.percentile(values, (0.5, 99.5), axis=(0, 1, 2))
    expected = np.round(np.clip((values - low) / (high - low), 0, 1) * 255)
    assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1 and (found != expected).mean() < 1e-2
    assert (found.min(), found.max()) == (0, 255)


def test_levels_of_given_limits_and_of_nearly_constant_volumes():
    values = np.array([-2000.0, -100, 100, 300, 5000]).reshape(1, 1, 5)
    assert volumes.to_levels(values, intensities=(-100, 300)).ravel().tolist() == [0, 0, 128, 255, 255]
    assert volumes.to_levels(np.full((3, 3, 3), 7)).tolist() == np.zeros((3, 3, 3, 1)).tolist()
    spot = np.zeros((20, 20, 20))  # of which the percentiles are equal
    spot[3, 4, 5] = 9
    assert volumes.to_levels(spot)[3, 4, 5, 0] == 255


def test_padding_is_at_the_far_ends():
    padded = volumes.pad_to(np.ones((2, 3, 4, 1), np.uint8), (3, 3, 5))
    assert padded.shape == (3, 3, 5, 1) and padded[:2, :, :4].all() and (padded[2] == 128).all() and (padded[:, :, 4] == 128).all()
    assert volumes.pad_to(np.ones((2, 3, 4)), (1, 1, 1)).shape == (2, 3, 4)


def damaged(tmp_path: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def truncated(tmp_path: pathlib.Path) -> pathlib.Path:
    path = save(tmp_path / "x.nii.gz", RNG.normal(size=(9, 9, 9)))
    return damaged(tmp_path, "x.nii.gz", path.read_bytes()[:-900])


def lying(tmp_path: pathlib.Path) -> pathlib.Path:
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape((2000, 2000, 2000))
    return damaged(tmp_path, "x.nii.gz", gzip.compress(header.binaryblock + b"\0" * 8))


def flat(tmp_path: pathlib.Path) -> pathlib.Path:
    """The second row of the affine is 0; nibabel does not write such files."""
    content = bytearray(save(tmp_path / "x.nii", np.zeros((2, 2, 2))).read_bytes())
    content[296:312] = bytes(16)
    return damaged(tmp_path, "x.nii", content)  # pyright: ignore


FILES = {
    "missing": (lambda p: p / "x.nii.gz", "{0} does not exist; give a NIfTI file (.nii or .nii.gz)."),
    "a folder": (lambda p: p, "{0} is a folder; give a NIfTI file (.nii or .nii.gz)."),
    "a picture": (
        lambda p: damaged(p, "x.png", b"\x89PNG"),
        "{0} is not named like a NIfTI file (.nii or .nii.gz); convert it, or correct its name.",
    ),
    "text": (
        lambda p: damaged(p, "x.nii", b"hello" * 200),
        "{0} cannot be read as a NIfTI file (.nii or .nii.gz) (*); repair, replace or remove it.",
    ),
    "text in gzip": (
        lambda p: damaged(p, "x.nii.gz", gzip.compress(b"hello" * 200)),
        "{0} cannot be read as a NIfTI file (.nii or .nii.gz) (*); repair, replace or remove it.",
    ),
    "not gzip": (
        lambda p: damaged(p, "x.nii.gz", b"hello" * 200),
        "{0} cannot be read as a NIfTI file (.nii or .nii.gz) (*); repair, replace or remove it.",
    ),
    "truncated": (truncated, "{0} cannot be read as a NIfTI file (.nii or .nii.gz) (*); repair, replace or remove it."),
    "lying": (lying, "{0} claims (2000, 2000, 2000) voxels, more than its * bytes can hold; copy it again."),
    "a slice": (
        lambda p: save(p / "x.nii", np.zeros((4, 5))),
        "{0} has the shape (4, 5); give a volume (x, y, z) or (x, y, z, channels).",
    ),
    "not finite": (
        lambda p: save(p / "x.nii", np.array([0.0, np.nan, 1, np.inf]).reshape(1, 2, 2)),
        "{0} holds 2 values that are not finite; replace them, such as by 0 outside of the body.",
    ),
    "complex": (
        lambda p: save(p / "x.nii", np.zeros((2, 2, 2), np.complex64)),
        "{0} holds complex64, which are not numbers; give a volume of intensities or class numbers.",
    ),
    "flat": (
        flat,
        "{0} has an affine that does not say where its axes point; correct its header.",
    ),
}


def same(found: str, expected: str) -> bool:
    """Whether a text is the expected one, in which * stands for what another library says."""
    first, *rest = expected.split("*")
    return found == expected if not rest else found.startswith(first) and found.endswith(rest[-1]) and "\n" not in found


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_is_one_line(tmp_path, name):
    make, text = FILES[name]
    path = make(tmp_path)
    with pytest.raises(UserError) as caught:
        volumes.read_volume(path)
    assert same(str(caught.value), text.format(path)), str(caught.value)


def test_without_nibabel_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "x.nii", np.zeros((2, 2, 2)))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UserError, match=r'^volumes need nibabel, which cannot be imported \(.*\); pip install "nibabel>=5"\.$'):
        volumes.read_volume(path)


# Folders


def folder_of(tmp_path: pathlib.Path, count: int = 10, **changes: Any) -> Any:
    """A folder of volumes with numbered voxels, and its config."""
    for i in range(count):
        shape = (4 + i % 2, 5, 3 + i % 3)
        mask = (np.arange(np.prod(shape)).reshape(shape) % 3).astype((np.uint8, np.float32)[i % 2])
        save(tmp_path / "images" / f"{i}.nii.gz", (i + 1) * mask, affine_of(*TURNED[0]))
        save(tmp_path / "labels" / f"{i}.nii.gz", mask, affine_of(*TURNED[0]))
    data = default_config("tiny", task="segmentation").data
    data.update(name="volumes", dir=str(tmp_path), validation=0.0, **changes)
    return data


def opened(data: Any) -> Any:
    return open_masked(data, seed=0, ignored=255)


@pytest.mark.parametrize("memory", [2048, 0])
def test_records_of_a_folder_are_padded_to_the_largest(tmp_path, memory):
    data = folder_of(tmp_path, test=0.3, memory_mb=memory)
    splits = opened(data)
    assert splits.describe() == f"data: 3 classes, 7 training, 3 test volumes from {tmp_path} (a fixed part of it is the test split)"
    assert splits.spec.input_shape == (5, 5, 5, 1) and splits.spec.is_volume
    seen = set()
    for part in (splits.train, splits.test):
        for name, record in zip(part.files, read(part, np.arange(len(part)))):
            i = int(pathlib.Path(name).name[0])
            seen.add(i)
            shape = (4 + i % 2, 5, 3 + i % 3)
            inner = tuple(map(slice, shape))
            mask = np.arange(np.prod(shape)).reshape(shape) % 3
            np.testing.assert_array_equal(record["label"][inner], mask)
            np.testing.assert_array_equal(record["image"][inner][..., 0], np.round(255 * mask / 2))
            assert (record["label"] == 255).sum() == 125 - mask.size and record["image"].shape == (5, 5, 5, 1)
            np.testing.assert_allclose(record["spacing"], (1, 2, 0.5))
    assert seen == set(range(10))


def test_the_test_split_does_not_depend_on_the_seed(tmp_path):
    data = folder_of(tmp_path)
    first, second = (open_masked(data, seed=seed, ignored=255) for seed in (0, 1))
    assert first.test.files == second.test.files and len(first.test) == 2  # pyright: ignore


def remove(path: str) -> Any:
    return lambda p: (p / path).unlink()


FOLDERS = {
    "a volume without a mask": (
        remove("labels/3.nii.gz"),
        {},
        "{0}/images/3.nii.gz has no mask of the same name in {0}/labels (1 such files); add or remove it.",
    ),
    "a mask without a volume": (
        remove("images/3.nii.gz"),
        {},
        "{0}/labels/3.nii.gz has no volume of the same name in {0}/images (1 such files); add or remove it.",
    ),
    "a mask of another size": (
        lambda p: save(p / "labels/3.nii.gz", np.zeros((5, 5, 4), np.uint8), affine_of(*TURNED[0])),
        {},
        "{0}/labels/3.nii.gz: the mask has 5x5x4 voxels, its volume 5x5x3; make them the same size.",
    ),
    "a mask of another place": (
        lambda p: save(p / "labels/4.nii.gz", np.zeros((4, 5, 4), np.uint8), affine_of(*TURNED[0]) + np.eye(4)[:, [3, 1, 2, 0]] * 0.25),
        {},
        "{0}/labels/4.nii.gz: the affine of the mask differs from that of its volume by up to 0.25 mm, so that they are not of the same "
        "place; resample the mask to its volume, or correct its header.",
    ),
    "an unknown class": (
        lambda p: None,
        {"class_names": ("a", "b")},
        "{0}/labels/*.nii.gz: the mask holds 2, but the classes are 0 to 1 and 255 is ignored; correct the mask, or list the values of the "
        "classes in config.data.mask_values.",
    ),
    "half a class": (
        lambda p: save(p / "labels/3.nii.gz", np.full((5, 5, 3), 0.5), affine_of(*TURNED[0])),
        {},
        "{0}/labels/3.nii.gz holds the number 0.5; a mask holds class numbers, whole and up to 255.",
    ),
    "a mask of channels": (
        lambda p: save(p / "labels/3.nii.gz", np.zeros((5, 5, 3, 2)), affine_of(*TURNED[0])),
        {},
        "{0}/labels/3.nii.gz has 2 channels; a mask holds one class number per voxel.",
    ),
    "other channels": (
        lambda p: save(p / "images/3.nii.gz", np.zeros((5, 5, 3, 2)), affine_of(*TURNED[0])),
        {},
        "{0}/images/3.nii.gz has 2 channels, and other volumes 1; give volumes of the same channels.",
    ),
    "limits": (
        lambda p: None,
        {"intensities": (300, -100)},
        "config.data.intensities=(300, -100) must be the intensities of black and white, the lower one first, or () for percentiles.",
    ),
    "no folder": (
        lambda p: None,
        {"dir": "nowhere"},
        'data.name="volumes" needs data.dir to be a folder of images/ and labels/; "nowhere" is not a folder.',
    ),
    "no labels": (
        lambda p: (p / "labels").rename(p / "masks"),
        {},
        "there is no folder {0}/labels; name the two folders in config.data.image_field and config.data.mask_field.",
    ),
    "a share too small": (
        lambda p: None,
        {"test": 0.01},
        "{0} holds 10 volumes, too few to hold out config.data.test=0.01 of them for testing; add volumes, or folders train and test.",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wrong_folder_is_one_line(tmp_path, name):
    change, options, text = FOLDERS[name]
    data = folder_of(tmp_path)
    change(tmp_path)
    data.update(options)
    with pytest.raises(UserError) as caught:
        opened(data)
    assert same(str(caught.value), text.format(tmp_path)), str(caught.value)


def test_damaged_files_are_left_out_if_asked(tmp_path, capsys):
    data = folder_of(tmp_path, on_bad="skip")
    (tmp_path / "images" / "3.nii.gz").write_bytes(b"hello" * 99)
    splits = opened(data)
    assert len(splits.train) + len(splits.test) == 9
    assert f"are left out, since they cannot be read: {tmp_path}/images/3.nii.gz cannot be read as a NIfTI file" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "noted"), [(1.03, False), (1.5, True)])
def test_a_line_says_that_spacings_differ(tmp_path, factor, noted, capsys):
    data = folder_of(tmp_path)
    for folder in ("images", "labels"):
        path = tmp_path / folder / "4.nii.gz"
        image: Any = nibabel.load(path)
        scaled = image.affine @ np.diag([1, 1, factor, 1])
        save(path, np.asarray(image.dataobj), scaled)
    opened(data)
    said = capsys.readouterr().err
    assert ("not resampled" in said) == noted
    if noted:
        assert said.startswith("note: voxels measure 1 x 2 x 0.5 to 0.75 mm, depending on the file, and volumes are not resampled;")


def test_the_public_list():
    assert dilax.volumes is volumes
