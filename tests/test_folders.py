"""Laws of folders, the same for all readers: which files are read, which sub-folder is which split, and what a run says of it."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from task_cases import CASES

from dilax import DataSpec
from dilax.errors import UserError
from dilax.files import user_path
from train import evaluate
from train.config import task_class
from train.data import source as sources
from train.data.readers.files import labelled_files, list_files
from train.data.splits import check_classes, class_order

RNG = np.random.default_rng(6)
# The tasks that read folders of classes, and those that read other folders.
CLASSES, OTHERS = ("images", "sounds", "texts", "pixels"), ("masks", "waves", "mixtures")


def opened(folder: pathlib.Path, name: str, **changes: Any) -> Any:
    """Open a folder as the task of a case does."""
    config = CASES[name].config(folder.parent / "elsewhere", **changes)
    config.data.dir = str(folder)
    return task_class(config.task).open(config)


def write(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Write the data of a case into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    CASES[name].write(folder)
    return folder


def count(splits: Any) -> list[int]:
    return [0 if part is None else len(part) for part in (splits.train, splits.validation, splits.test)]


def data_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Which files are read


def test_files_are_those_that_a_user_sees(tmp_path):
    for name in (
        "a.wav",
        "b.WAV",
        "deep/er/c.Wav",
        ".d.wav",
        "._e.wav",
        ".cache/f.wav",
        "deep/.ipynb_checkpoints/c.wav",
        "g.txt",
        ".DS_Store",
    ):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text("x")
    (tmp_path / "x" / "folder.wav").mkdir()
    (tmp_path / "elsewhere" / "in").mkdir(parents=True)
    (tmp_path / "elsewhere" / "in" / "h.wav").write_text("x")
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "x" / "i.wav").symlink_to(tmp_path / "elsewhere" / "in" / "h.wav")
    (tmp_path / "x" / "deep" / "round").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "twice").symlink_to(tmp_path / "x" / "deep" / "er")
    found = [str(path.relative_to(tmp_path / "x")) for path in list_files(tmp_path / "x", {".wav"})]
    assert found == ["a.wav", "b.WAV", "deep/er/c.Wav", "i.wav", "linked/in/h.wav"]


CLUTTER = {
    "copies of a notebook": lambda folder, file: shutil.copytree(file.parent, file.parent / ".ipynb_checkpoints"),
    "resource fork": lambda folder, file: (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7"),
    "DS_Store": lambda folder, file: [(at / ".DS_Store").write_bytes(b"\0") for at in (folder, file.parent)],
    "capitals": lambda folder, file: file.rename(file.with_suffix(file.suffix.upper())),
    "cache": lambda folder, file: shutil.copytree(file.parent, folder / ".cache"),
}


@pytest.mark.parametrize("clutter", CLUTTER)
@pytest.mark.parametrize("name", ["images", "sounds", "texts", *OTHERS])
def test_clutter_changes_nothing(tmp_path, name, clutter):
    folder = write(tmp_path / "data", name)
    expected = opened(folder, name)
    CLUTTER[clutter](folder, data_files(folder)[0])
    found = opened(folder, name)
    assert count(found) == count(expected)
    for split in ("train", "validation", "test"):
        before, now = (sources.gather(getattr(one, split), np.arange(len(getattr(one, split)))) for one in (expected, found))
        for field, values in before.items():
            np.testing.assert_array_equal(now[field], values)


@pytest.mark.parametrize("name", ["images", "sounds", "texts", *OTHERS])
def test_linked_folders_are_read(tmp_path, name):
    folder = write(tmp_path / "data", name)
    expected = count(opened(folder, name))
    for path in [path for path in folder.iterdir() if path.is_dir()]:
        inner = tmp_path / "far" / path.name
        inner.parent.mkdir(exist_ok=True)
        shutil.move(path, inner)
        path.mkdir()
        (path / "linked").symlink_to(inner)
    assert count(opened(folder, name)) == expected


@pytest.mark.parametrize(("make", "what"), [
    (lambda path: path.symlink_to("nowhere"), "a broken link"),
    (lambda path: os.mkfifo(path), "a pipe or a device, not a regular file"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["images", "sounds", "texts", *OTHERS])
def test_what_is_not_a_file_is_named_and_does_not_hang(tmp_path, name, make: Callable[[pathlib.Path], Any], what):
    folder = write(tmp_path / "data", name)
    file = data_files(folder)[0]
    file.unlink()
    make(file)
    with pytest.raises(UserError) as caught:
        opened(folder, name)
    assert str(caught.value) == f"{file} is {what}; remove or replace it."


def test_the_home_folder_and_unknown_homes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x" and user_path("~no-such-user/x") == pathlib.Path("~no-such-user/x")
    write(tmp_path / "pets", "images")
    config = CASES["images"].config(tmp_path / "elsewhere")
    config.data.dir = "~/pets"
    assert count(task_class(config.task).open(config)) == [29, 3, 8]


# Splits


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "Valid", "Test"), ("TRAIN", "dev", "TESTING")]
)
@pytest.mark.parametrize("name", [*CLASSES, *OTHERS])
def test_folders_are_the_splits_that_they_are_called(tmp_path, name, names):
    for split in names:
        write(tmp_path / "data" / split, name)
    parts = dict(zip(("train", "validation", "test"), names))
    # Each split misses other files, so that they are told apart by their number.
    for missing, split in enumerate(names):
        stems = sorted({path.stem for path in data_files(tmp_path / "data" / split)})[:missing]
        for path in data_files(tmp_path / "data" / split):
            if path.stem in stems:
                path.unlink()
    splits = opened(tmp_path / "data", name, **({"sequence.length": 3359} if name in ("waves", "mixtures") else {}))
    per = 2 if name in (*CLASSES, "waves") else 1
    whole = {"waves": 24, "mixtures": 24, "masks": 30, "sounds": 24}.get(name, 40)
    assert count(splits) == [whole, whole - per, whole - 2 * per]
    taken = f"training: {parts['train']}/, validation: {parts['validation']}/, test: {parts['test']}/"
    assert splits.describe().endswith(f" from {tmp_path}/data ({taken})")
    without = opened(
        tmp_path / "data", name, **{"data.validation": 0.0, **({"sequence.length": 3359} if name in ("waves", "mixtures") else {})}
    )
    assert count(without) == [whole, 0, whole - 2 * per]
    assert without.describe().endswith(f"(training: {parts['train']}/, test: {parts['test']}/; not read: {parts['validation']}/)")


@pytest.mark.parametrize("name", [*CLASSES, *OTHERS])
def test_a_training_split_alone_is_refused(tmp_path, name):
    write(tmp_path / "data" / "Train", name)
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "data", name)
    train = tmp_path / "data" / "Train"
    message = f"{train.parent} holds Train/ but neither test/ nor validation/; add one, or set config.data.dir to {train}; if Train is a class, put the classes into folders train/ and test/."
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "names",
    [("test", "val"), ("train_set", "test_set"), ("train2017", "val2017"), ("Training Data", "Testing Data"), ("trainset", "testset")],
)
@pytest.mark.parametrize("name", CLASSES)
def test_splits_do_not_become_classes(tmp_path, name, names):
    for split in names:
        write(tmp_path / "data" / split, name)
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "data", name)
    listed = ", ".join(sorted(names))
    assert str(caught.value) == f"{tmp_path}/data holds {listed}, which are splits, not classes; name them train, validation and test."


@pytest.mark.parametrize("name", CLASSES)
def test_one_folder_too_high_is_refused(tmp_path, name):
    write(tmp_path / "data" / "pets", name)
    with pytest.raises(UserError, match=r"data holds only one class, pets; put the files \(.*\) of each of two or more classes"):
        opened(tmp_path / "data", name)


def test_one_class_is_refused_everywhere(tmp_path):
    write(tmp_path / "data", "images")
    with pytest.raises(UserError, match="holds only one class, light, from which nothing can be learned; give two or more classes"):
        opened(tmp_path / "data", "images", **{"data.classes": (1,)})
    series = write(tmp_path / "series", "series")
    for path in series.glob("*.ts"):
        path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith(":down\n")))
    with pytest.raises(UserError, match="series holds only one class, up, from which nothing can be learned"):
        opened(series, "series")
    check_classes(("train", "car"), "vehicles")
    check_classes(("train", "train2"), "vehicles")


def test_what_is_left_out_is_named(tmp_path, capsys):
    folder = write(tmp_path / "data", "images")
    (folder / "_drafts").mkdir()
    for name in ("x.png", "y.PNG", "notes.txt"):
        shutil.copy(folder / "dark" / "0.png", folder / name)
    assert len(labelled_files(folder, {".png"})) == 40
    assert capsys.readouterr().err == f"note: {folder}: left out: _drafts/, 2 files that are in no folder of a class.\n"


DESCRIBED = {
    "images": "2 classes, 29 training, 3 validation, 8 test images from {dir} (a fixed part of it is the test split)",
    "masks": "2 classes, 22 training, 2 validation, 6 test images from {dir} (a fixed part of it is the test split)",
    "series": "2 classes, 22 training, 2 validation, 24 test series from {dir}",
    "sounds": "2 classes, 17 training, 2 validation, 5 test sounds from {dir} (a fixed part of it is the test split)",
    "table": "2 columns, 9 training, 1 validation, 3 test windows from {dir}/table.csv",
    "sums": "1 outputs, 40 training, 1000 validation, 1000 test sequences from adding",
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_run_says_what_was_opened(tmp_path, name):
    config = CASES[name].config(tmp_path)
    described = task_class(config.task).open(config).describe()
    assert described == "data: " + DESCRIBED[name].format(dir=tmp_path / "data")


# Classes and their order


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (map(str, range(13)), tuple(map(str, range(13)))),
        (("10", "9", "-1", "+2"), ("-1", "+2", "9", "10")),
        (("2.5", "10", "1"), ("1", "2.5", "10")),
        (("01", "1", "0"), ("0", "01", "1")),
        (("b10", "b9", "10"), ("10", "b10", "b9")),
        (("1e3", "5", "inf"), ("1e3", "5", "inf")),
    ],
)
def test_numbers_are_sorted_as_numbers(names, order):
    assert class_order(names) == order


@pytest.mark.parametrize("name", CLASSES)
def test_folders_of_numbers_are_classes_in_the_order_of_the_numbers(tmp_path, name):
    folder = write(tmp_path / "data", name)
    first, second = sorted(path for path in folder.iterdir() if path.is_dir())
    first.rename(folder / "10")
    second.rename(folder / "9")
    splits = opened(folder, name)
    assert splits.spec.outputs == ("9", "10")
    assert set(np.asarray(sources.field(splits.train, "label")).tolist()) == {0, 1}


def spec(names: tuple[str, ...]) -> DataSpec:
    return DataSpec("folder", (4, 4, 3), names)


@pytest.mark.parametrize(
    ("trained", "here"),
    [
        (("1", "2"), ("7", "8")),
        (("0", "1"), ("1", "2")),
        (("0", "1", "2"), ("0", "1")),
        (("1", "2"), ("cat", "dog")),
        (("10", "2"), ("2", "10")),
    ],
)
def test_other_classes_than_those_of_the_run_are_refused(trained, here):
    with pytest.raises(UserError) as caught:
        evaluate.check_data(spec(trained), spec(here))
    message = f"the data has the outputs {', '.join(here)}, and the run {', '.join(trained)}; give the data it was trained on."
    assert str(caught.value) == message


def test_classes_that_the_run_knows_by_number_are_said(capsys):
    names = tuple(f"n{i:02}" for i in range(12))
    evaluate.check_data(spec(tuple(map(str, range(12)))), spec(names))
    warning = (
        "warning: the run numbers its classes; in the order of the data here, 0 is n00, 1 is n01, 2 is n02, 3 is n03, 4 is n04, ....\n"
    )
    assert capsys.readouterr().err == warning
    evaluate.check_data(spec(names), spec(names))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_class_that_is_not_utf8_is_refused(tmp_path):
    folder = write(tmp_path / "data", "images")
    try:
        os.rename(folder / "dark", os.fsencode(folder) + b"/d\xe9j\xe0")
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    with pytest.raises(UserError) as caught:
        opened(folder, "images")
    assert str(caught.value) == f"the name of the folder '{folder}/d\\udce9j\\udce0' is not UTF-8; rename it."
    str(caught.value).encode()


# Masks


def write_masks(folder: pathlib.Path, values: tuple[int, ...]) -> pathlib.Path:
    for i in range(12):
        for name, shape in (("images", (5, 6, 3)), ("masks", (5, 6))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            pixels = RNG.integers(0, 256, shape) if name == "images" else RNG.choice(values, shape)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_black_and_white_masks_are_refused_with_and_without_names(tmp_path):
    folder = write_masks(tmp_path / "data", (0, 255))
    with pytest.raises(UserError, match="the masks hold 0, 255, of which 255 is ignored"):
        opened(folder, "masks")
    with pytest.raises(UserError) as caught:
        opened(folder, "masks", **{"data.class_names": ("ground", "crack")})
    assert str(caught.value) == (
        "data: all pixels of the training split that count are of one class, ground; pixels of 255 are ignored; correct the masks, or list "
        "the value of each class in config.data.mask_values, such as (0, 255)."
    )
    splits = opened(folder, "masks", **{"data.class_names": ("ground", "crack"), "data.mask_values": (0, 255)})
    assert set(np.unique(sources.field(splits.train, "label"))) == {0, 1}
    with pytest.raises(UserError, match=r"the mask holds 3, but the classes are 0 to 1 and 255 is ignored"):
        opened(write_masks(tmp_path / "more", (0, 1, 3)), "masks", **{"data.class_names": ("ground", "crack")})


@pytest.mark.parametrize("memory_mb", [64, 0])
def test_a_class_without_a_pixel_is_named(tmp_path, capsys, memory_mb):
    folder = write_masks(tmp_path / "data", (0, 1, 255))
    opened(folder, "masks", **{"data.class_names": ("ground", "crack", "sky"), "data.memory_mb": memory_mb})
    assert capsys.readouterr().err == "note: the training split has no pixel of sky.\n"
    opened(folder, "masks", **{"data.class_names": ("ground", "crack"), "data.memory_mb": memory_mb})
    assert capsys.readouterr().err == ""


LISTS: dict[str, tuple[dict[str, bytes], str]] = {
    "both": ({"train.txt": b"0\n1\n2\n", "test.txt": b"4\n1\n"}, "{lists}/train.txt and {lists}/test.txt both name 1; remove one, so that no image counts twice."),
    "twice": ({"train.txt": b"0\n1\n0\n", "test.txt": b"4\n"}, "{lists}/train.txt names 0 twice; remove one, so that no image counts twice."),
    "the same with a suffix": ({"train.txt": b"0\n1.png\n", "val.txt": b"1\n"}, "{lists}/train.txt and {lists}/val.txt both name 1; remove one, so that no image counts twice."),
    "Latin-1": ({"train.txt": b"0\nd\xe9j\xe0\n", "test.txt": b"4\n"}, "{lists}/train.txt is not UTF-8: byte 0xe9 at position 3; convert it, or give a text file."),
    "missing": ({"train.txt": b"0\n99\n", "test.txt": b"4\n"}, "{lists}/train.txt names 99, but {dir}/images does not hold it; add it, or correct the list."),
    "blank": ({"train.txt": b"0\n", "test.txt": b"\n"}, "{lists}/test.txt names no image; add some, or remove the file."),
    "alone": ({"train.txt": b"0\n"}, "{lists} holds train.txt but neither test.txt nor validation.txt; add one, or set config.data.dir to {lists}/train.txt."),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_mistakes_in_lists(tmp_path, name):
    folder, (files, message) = write_masks(tmp_path / "data", (0, 1)), LISTS[name]
    (folder / "lists").mkdir()
    for file, content in files.items():
        (folder / "lists" / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        opened(folder, "masks", **{"data.lists": "lists"})
    assert str(caught.value) == message.format(lists=folder / "lists", dir=folder)


def test_lists_with_spaces_suffixes_and_a_byte_order_mark(tmp_path):
    folder = write_masks(tmp_path / "data", (0, 1))
    for part in ("images", "masks"):
        (folder / part / "3.png").rename(folder / part / "left field.png")
    (folder / "lists").mkdir()
    (folder / "lists" / "train.txt").write_bytes("\ufeff0\r\nleft field\r\n  2.png  \r\n\r\n1\r\n".encode())
    (folder / "lists" / "TEST.txt").write_bytes(b"5\n4.PNG")
    splits = opened(folder, "masks", **{"data.lists": "lists", "data.validation": 0.0})
    assert count(splits) == [4, 0, 2]
    np.testing.assert_array_equal(splits.train[1]["image"], np.asarray(Image.open(folder / "images" / "left field.png")))
    assert splits.describe().endswith(f"test images from {folder}, lists {folder}/lists (training: train.txt, test: TEST.txt)")
