"""Readers of labelled sequences: recordings in folders and folds, tagged words; what was written is read, and a mistake gets one line."""

import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reading import check_call, check_mistake, written
from scipy.io import savemat

from train.data.readers.conll import Sentence, read_conll, read_tagged
from train.data.readers.recordings import count_steps, read_features, read_folder, read_folds, turned_features

RNG = np.random.default_rng(7)
VIDEOS = {"a-1": ("cut", 6), "b-2": ("mix", 4), "c-3": ("rest", 9), "d-4": ("cut", 4), "e-5": ("mix", 5)}
ARRAYS = {name: RNG.normal(size=(steps, 4)).astype(np.float32) for name, (_, steps) in VIDEOS.items()}


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore
    return buffer.getvalue()


def csv(values: np.ndarray) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in values.tolist()).encode()


def layout(folder: pathlib.Path, *, turned: bool = False, kind: str = "npy", labels: str = "groundTruth") -> pathlib.Path:
    """Write the videos below a folder, their arrays perhaps as (channels, time)."""
    for name, (label, steps) in VIDEOS.items():
        values = ARRAYS[name].T if turned else ARRAYS[name]
        content = {"npy": npy, "npz": lambda x: npz(only=x), "csv": csv}[kind](values)
        written(folder / "features" / f"{name}.{kind}", content)
        written(folder / labels / f"{name}.txt", "\n".join(["rest", *[label] * (steps - 1)]) + "\n\n")
    return folder


FORMS: dict[str, dict[str, Any]] = {
    "npy": {},
    "channels first": {"turned": True},
    "npz": {"kind": "npz"},
    "csv": {"kind": "csv", "labels": "labels"},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_was_written_is_read(form, tmp_path):
    """Two of the arrays are square, and turned as the others are."""
    found = read_folder(layout(tmp_path, **FORMS[form]), 1)
    assert {part: len(some) for part, some in found.parts.items()} == {"train": 4, "test": 1}
    for one in found.parts["train"] + found.parts["test"]:
        name = pathlib.Path(one.name).stem
        np.testing.assert_allclose(one.features, ARRAYS[name], rtol=1e-6)
        assert one.labels == ("rest", *[VIDEOS[name][0]] * (VIDEOS[name][1] - 1))


def test_bundles_and_the_mapping_are_honoured(tmp_path):
    layout(tmp_path)
    written(tmp_path / "mapping.txt", "1 cut\n0 rest\n2 mix\n3 never\n")
    for split, test in ((1, "a-1"), (2, "c-3")):
        written(tmp_path / "splits" / f"train.split{split}.bundle", "\n".join(f"{name}.txt" for name in VIDEOS if name != test))
        written(tmp_path / "splits" / f"test.split{split}.bundle", f"groundTruth/{test}.txt\n")
    for split, test in ((1, "a-1"), (2, "c-3")):
        found = read_folder(tmp_path, split)
        assert found.classes == ("rest", "cut", "mix", "never")
        assert [pathlib.Path(one.name).stem for one in found.parts["test"]] == [test]
        assert [pathlib.Path(one.name).stem for one in found.parts["train"]] == [name for name in VIDEOS if name != test]


def test_a_folder_may_be_divided(tmp_path):
    for split in ("train", "Val", "test"):
        layout(tmp_path / split)
    assert {part: len(some) for part, some in read_folder(tmp_path, 1).parts.items()} == {"train": 5, "validation": 5, "test": 5}


def fold(scores: list[np.ndarray], classes: list[np.ndarray]) -> bytes:
    cells = {name: np.empty((1, len(some)), object) for name, some in (("S", scores), ("Y", classes))}
    for name, some in (("S", scores), ("Y", classes)):
        for i, one in enumerate(some):
            cells[name][0, i] = one
    buffer = io.BytesIO()
    savemat(buffer, cells)
    return buffer.getvalue()


def test_steps_are_counted_by_the_labels(tmp_path):
    assert sorted(count_steps(layout(tmp_path / "videos"))) == sorted(steps for _, steps in VIDEOS.values())
    (tmp_path / "empty" / "features").mkdir(parents=True)
    (tmp_path / "empty" / "labels").mkdir()
    check_call(lambda: count_steps(tmp_path / "empty"), f"{tmp_path}/empty/labels holds no .txt files; add the labels of each recording.")


def test_a_file_without_blank_lines_is_one_sentence(tmp_path):
    path = written(tmp_path / "one.tsv", "ox\tO\nhen\tB-Bird\n")
    check_call(lambda: read_tagged(path), f"{path} is one sentence of 2 words; end each sentence with a blank line.")


def test_folds_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        written(tmp_path / f"Split_{number}.mat", fold([np.full((3, 2), float(number))], [np.array([[0, number, number]])]))
    found = read_folds(tmp_path, 3)
    assert [one.features[0, 0] for one in found.parts["train"]] == [1, 2]
    (test,) = found.parts["test"]
    assert test.features.dtype == np.float32 and test.labels == ("0", "10", "10")


def test_features_without_labels_are_turned_by_their_channels(tmp_path):
    for name, values in (("first.npy", ARRAYS["a-1"]), ("last.npy", ARRAYS["a-1"].T)):
        np.testing.assert_array_equal(turned_features(written(tmp_path / name, npy(values)), 4), ARRAYS["a-1"])
    square = written(tmp_path / "square.npy", npy(ARRAYS["b-2"]))
    np.testing.assert_array_equal(turned_features(square, 4), ARRAYS["b-2"])


FEATURES: dict[str, tuple[bytes | None, str]] = {
    "x.npy": (None, "{path} does not exist; give a .npy or .npz file."),
    "x.txt": (b"1", "{path} is not a file of features; give one of .npy, .npz, .csv."),
    "half.npy": (npy(np.ones((3, 4)))[:40], ""),
    "vector.npy": (npy(np.ones(4)), "{path} has shape (4,); give features (time, channels) or (channels, time)."),
    "nan.npy": (npy(np.array([[np.nan, 1.0]])), "{path} holds features that are NaN, infinite or beyond float32; repair or remove it."),
    "words.npy": (npy(np.array([["a"]])), "{path} holds <U1; give numbers."),
    "two.npz": (npz(a=np.ones((2, 2)), b=np.ones(2)), '{path} holds the arrays a, b; call the one with the features "features".'),
}


@pytest.mark.parametrize("name", FEATURES)
def test_mistakes_in_features(name, tmp_path):
    content, message = FEATURES[name]
    if message:
        check_mistake(read_features, tmp_path / name, content, message)
        return
    with pytest.raises(Exception, match=r"cannot be read as an array .*; it is damaged, or in another format\.$"):
        read_features(written(tmp_path / name, content or b""))


def lengthen(folder: pathlib.Path) -> None:
    written(folder / "groundTruth" / "c-3.txt", "rest\n" * 7)


def turn_one(folder: pathlib.Path) -> None:
    written(folder / "features" / "e-5.npy", npy(ARRAYS["e-5"].T))


CHANGES: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "lengths": (lengthen, "{0}/features/c-3.npy has features of shape (9, 4) and 7 labels; give as many labels as steps."),
    "turned": (turn_one, "{0}/features/e-5.npy is (channels, time), unlike the files before it; turn it."),
    "no labels": (
        lambda folder: (folder / "groundTruth" / "b-2.txt").unlink(),
        "{0}/features/b-2.npy has no labels; add {0}/groundTruth/b-2.txt, with the class of one step on each line.",
    ),
    "unknown": (
        lambda folder: written(folder / "mapping.txt", "0 rest\n1 cut\n"),
        "{0}/groundTruth/b-2.txt, line 2: the class 'mix' is not in mapping.txt; correct it, or add it there.",
    ),
    "mapping": (
        lambda folder: written(folder / "mapping.txt", "rest\n"),
        "{0}/mapping.txt, line 1: 'rest' is not a number and a class, such as \"0 background\"; correct it.",
    ),
    "blank": (
        lambda folder: written(folder / "groundTruth" / "a-1.txt", "rest\n\ncut\n"),
        "{0}/groundTruth/a-1.txt, line 2 is blank; remove it, or fill it in.",
    ),
    "twice": (
        lambda folder: written(folder / "features" / "a-1.csv", "1,2\n"),
        "{0}/features/a-1.npy and {0}/features/a-1.csv have the same name; keep one of them.",
    ),
    "bundle": (
        lambda folder: [written(folder / "splits" / f"{part}.split1.bundle", "z.txt\n") for part in ("train", "test")],
        "{0}/splits/train.split1.bundle names z, and there are no features of it; add them, or remove the line.",
    ),
    "empty bundle": (
        lambda folder: [
            written(folder / "splits" / f"{part}.split1.bundle", line) for part, line in (("train", "a-1.txt\n"), ("test", "\n"))
        ],
        "{0}/splits/test.split1.bundle names no recordings; add a line for each of the test split.",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_mistakes_in_folders(name, tmp_path):
    change, message = CHANGES[name]
    change(layout(tmp_path))
    check_call(lambda: read_folder(tmp_path, 1), message.format(tmp_path))


def test_mistakes_in_folds(tmp_path):
    layout_words = "features/ with .npy, .npz, .csv files, and groundTruth/ or labels/ with a .txt file for each"
    check_call(lambda: read_folder(tmp_path, 1), f'"{tmp_path}" does not hold recordings; give a folder with {layout_words}.')
    check_call(
        lambda: read_folds(tmp_path, 1),
        f"{tmp_path} holds 0 .mat files, and a test split needs one of two or more; give the folder of all folds.",
    )
    for name in ("a.mat", "b.mat"):
        written(tmp_path / name, fold([np.ones((3, 2))], [np.zeros((1, 4), int)]))
    check_call(lambda: read_folds(tmp_path, 3), f"config.sequence.split=3 is not a fold of {tmp_path}, which holds 2; choose 1 to 2.")
    check_call(
        lambda: read_folds(tmp_path, 1),
        f"{tmp_path}/a.mat, recording 1: features of shape (3, 2) do not fit 4 classes; give (time, channels).",
    )


CONLL = "-DOCSTART- -X- O\n\nThe DT O\nox NN B-Beast\n\n\nA DT B-Beast\nred JJ I-Beast\nox NN I-Beast\n"
EXPECTED = [Sentence(("The", "ox"), ("O", "B-Beast")), Sentence(("A", "red", "ox"), ("B-Beast", "I-Beast", "I-Beast"))]


@pytest.mark.parametrize("content", [CONLL, CONLL.replace(" ", "\t"), CONLL + "\n\n", CONLL.replace("\n", "\r\n")])
def test_tagged_words_are_read(content, tmp_path):
    assert read_conll(written(tmp_path / "x.conll", content)) == EXPECTED


def test_splits_of_tagged_words(tmp_path):
    for name in ("train.tsv", "devel.tsv", "test.tsv"):
        written(tmp_path / name, CONLL)
    parts, origin = read_tagged(tmp_path)
    assert parts == dict.fromkeys(("train", "validation", "test"), EXPECTED)
    assert origin == f"{tmp_path} (training: train.tsv, validation: devel.tsv, test: test.tsv)"
    assert set(read_tagged(tmp_path, validation=False)[0]) == {"train", "test"}
    parts, _ = read_tagged(written(tmp_path / "all.txt", CONLL * 5))
    assert {part: len(some) for part, some in parts.items()} == {"train": 8, "test": 2}


WORDS = {
    "ox\n": "{path}, line 1: 'ox' is not a word and a tag; separate them by a tab or a blank.",
    "ox O\nox I-Beast\n": "{path}, line 2: the tag I-Beast follows O, and continues no span; begin it with B-Beast.",
    "ox B-Beast\n\nox I-Beast\n": "{path}, line 3: the tag I-Beast follows O, and continues no span; begin it with B-Beast.",
    "ox B-Beast\nox I-Bird\n": "{path}, line 2: the tag I-Bird follows B-Beast, and continues no span; begin it with B-Bird.",
    "ox S-Beast\n": '{path}, line 1: the tag \'S-Beast\' is not "O", and does not begin with "B-" or "I-"; convert the file to IOB2.',
    "-DOCSTART- O\n": "{path} holds no sentences; give a word and its tag on each line.",
}


@pytest.mark.parametrize("content", WORDS)
def test_mistakes_in_tagged_words(content, tmp_path):
    check_mistake(read_conll, tmp_path / "x.tsv", content, WORDS[content])


def test_a_folder_without_tagged_words(tmp_path):
    written(tmp_path / "notes.tsv", 9 * CONLL)
    assert read_tagged(tmp_path)[0] == read_tagged(tmp_path / "notes.tsv")[0]
    written(tmp_path / "others.tsv", CONLL)
    check_call(
        lambda: read_tagged(tmp_path),
        f"{tmp_path} holds notes.tsv, others.tsv; give a folder with train and test files (.conll, .tsv, .bio, .iob2, .txt), or one file.",
    )
