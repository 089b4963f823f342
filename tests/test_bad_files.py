"""Files that cannot be read end a run by name, or are left out and named with config.data.on_bad="skip", by every reader of folders."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict
from PIL import Image

from dilax.errors import UserError
from train.config import default_config, task_class

Make = Callable[[pathlib.Path, int], None]
RNG = np.random.default_rng(4)


def image(path: pathlib.Path, number: int) -> None:
    Image.fromarray(RNG.integers(0, 256, (9, 8, 3), np.uint8)).save(path.with_suffix(".png"))


def labelled(make: Make, folder: pathlib.Path) -> None:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(10):
            make(folder / label / f"{number}", number)


def masked(make: Make, folder: pathlib.Path) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(12):
        image(folder / "images" / str(number), number)
        Image.fromarray(RNG.integers(0, 2, (9, 8), np.uint8)).save(folder / "masks" / f"{number}.png")


def sound(path: pathlib.Path, number: int) -> None:
    soundfile.write(path.with_suffix(".wav"), RNG.uniform(-0.5, 0.5, 800), 8000)


def sounds(make: Make, folder: pathlib.Path) -> None:
    folder.mkdir()
    for number in range(12):
        sound(folder / str(number), number)


def mixtures(make: Make, folder: pathlib.Path) -> None:
    for name in ("mix", "s1", "s2"):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            sound(folder / name / str(number), number)


# Task, data.name, what makes the folder, and the files in it to be damaged: their records are left out.
CASES: dict[str, Any] = {
    "images": ("classification", "folder", labelled, image, ("a/3.png", "b/7.png")),
    "masks": ("segmentation", "folder", masked, image, ("images/3.png", "masks/5.png")),
    "labelled sounds": ("sequence_classification", "wav", labelled, sound, ("a/3.wav", "b/7.wav")),
    "sounds": ("waveform", "wav", sounds, sound, ("4.wav",)),
    "mixtures": ("separation", "mixtures", mixtures, sound, ("mix/3.wav", "s2/5.wav")),
}


def config_of(task: str, name: str, folder: pathlib.Path, **changes: Any) -> ConfigDict:
    config = default_config("test", task=task)
    config.data.name, config.data.dir = name, str(folder)
    config.update_from_flattened_dict(changes)
    return config


def files_and_counts(splits: Any) -> int:
    return sum(len(part) for part in (splits.train, splits.validation, splits.test) if part is not None)


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
@pytest.mark.parametrize("case", CASES)
def test_bad_files_are_fatal_or_left_out_by_name(case, how, tmp_path, capsys):
    task, name, make, one, damaged = CASES[case]
    folder = tmp_path / "data"
    make(one, folder)
    changes = {"data.validation": 0.2} if case != "sounds" else {"data.validation": 0.2, "sequence.length": 64, "sequence.stride": 64}
    changes = {
        key: value for key, value in changes.items() if key != "sequence.stride" or "stride" in config_of(task, name, folder).sequence
    }
    whole = files_and_counts(task_class(task).open(config_of(task, name, folder, **changes)))
    for file in damaged:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello there"}[how])
    with pytest.raises(UserError) as error:
        task_class(task).open(config_of(task, name, folder, **changes))
    assert any(file in str(error.value) for file in damaged) and "\n" not in str(error.value)
    capsys.readouterr()
    splits = task_class(task).open(config_of(task, name, folder, **{**changes, "data.on_bad": "skip"}))
    said = capsys.readouterr().err
    assert all(file in said for file in damaged)
    assert "left out, since they cannot be read" in said
    assert files_and_counts(splits) < whole if case == "sounds" else files_and_counts(splits) == whole - len(damaged)


def test_nothing_left_is_refused(tmp_path):
    labelled(image, tmp_path / "data")
    for file in (tmp_path / "data").rglob("*.png"):
        file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"^none of 16 images for train can be read; the first: .*0\.png"):
        task_class("classification").open(config_of("classification", "folder", tmp_path / "data", **{"data.on_bad": "skip"}))
