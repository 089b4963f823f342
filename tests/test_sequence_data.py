"""Data of the sequence tasks: made up, in windows, from files and folders; its splits, and mistakes."""

import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from reading import check_call
from task_cases import RATE, tone, write_mixtures, write_table

from dilax import DataSpec
from dilax.errors import UserError
from train.config import check, default_config, model_config, task_class
from train.data import Splits
from train.data.readers import sound
from train.data.readers.made_up import adding, copy_memory
from train.data.source import gather
from train.data.windows import padded, windows
from train.tasks.steps import cut_along_time, window_splits


def config_of(task: str, name: str, folder: object = "", **changes: Any) -> Any:
    config = default_config("test", task=task)
    config.data.update(name=name, dir=str(folder))
    config.model = model_config("tcn")
    config.update_from_flattened_dict(changes)
    return config


def open_data(task: str, name: str, folder: object = "", **changes: Any) -> Splits:
    """Open the data of a config as a run does."""
    config = config_of(task, name, folder, **changes)
    check(config)
    return task_class(task).open(config)


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(4, 0, 0), (5, 2, 0), (3, 2, 0), (7, 6, 0), (30, 8, 0), (5, 2, 3), (6, 1, 2), (7, 3, 1)]
)
def test_windows_score_every_sample_but_the_first_once_or_as_often_as_they_overlap(length, context, stride):
    long = [np.arange(100, 117), np.arange(200, 208), np.array([300]), np.arange(400, 402)]
    cut = windows(long, length, context, "it", stride=stride, short=length > 17)
    scored: list[int] = []
    for i in range(len(cut)):
        record = cut[i]
        for x, y, counted, step in zip(record["input"], record["label"], record["counted"], range(length)):
            if step < record["length"]:
                assert y == x + 1
            else:
                assert not counted
            if counted:
                scored.append(int(y))
                before = min(context, int(y) % 100 - 1)
                assert step >= before
                np.testing.assert_array_equal(record["input"][step - before : step + 1], np.arange(x - before, x + 1))
    times = {n: scored.count(n) for one in long for n in one[1:]}
    assert sum(times.values()) == len(scored)
    assert min(times.values()) == 1
    stride = stride or length - context
    assert max(times.values()) == -(-(length - context) // stride)
    assert set(np.diff(cut.starts[cut.starts < 17])) <= {stride}
    both = cut.gather(np.array([0, len(cut) - 1]))
    np.testing.assert_array_equal(both["label"][1], cut[len(cut) - 1]["label"])


def test_adding_asks_for_the_sum_of_the_two_marked_numbers():
    table = adding(50, 11, 3)
    for x, y, counted in zip(*(table.arrays[name] for name in ("input", "label", "counted"))):
        marked = np.flatnonzero(x[:, 1])
        assert (len(marked), marked[0] < 5, marked[1] >= 5) == (2, True, True)
        assert y[-1, 0] == pytest.approx(x[marked, 0].sum())
        assert counted.tolist() == [False] * 10 + [True]
    assert 0 <= table.arrays["input"].min() < 0.05 < 0.95 < table.arrays["input"].max() <= 1
    np.testing.assert_array_equal(adding(50, 11, 3).arrays["input"], table.arrays["input"])
    assert not np.array_equal(adding(50, 11, 4).arrays["input"], table.arrays["input"])


def test_copy_memory_asks_for_the_first_codes_again():
    table = copy_memory(30, 6, 1)
    for x, y in zip(table.arrays["input"], table.arrays["label"]):
        assert len(x) == len(y) == 26
        assert set(x[:10]) <= set(range(1, 9))
        assert (x[10:15].tolist(), x[15:].tolist()) == ([0] * 5, [9] * 11)
        assert (y[:16].tolist(), y[16:].tolist()) == ([0] * 16, x[:10].tolist())
    assert set(np.unique(table.arrays["input"])) == set(range(10))


MADE_UP = {"adding": {"sequence.length": 12}, "copy_memory": {"sequence.length": 3, "sequence.loss": "categorical"}}


def made_up(name: str, **changes: Any) -> Splits:
    return open_data("sequence_prediction", name, **{"sequence.examples": 2000, **MADE_UP[name], **changes})


def sequences_of(source: Any) -> set[bytes]:
    return {one.tobytes() for one in source.arrays["input"]}


@pytest.mark.parametrize("name", MADE_UP)
def test_splits_of_made_up_data_share_no_sequence(name):
    """Or the test split would choose the checkpoint, or be learned by heart."""
    runs = {seed: made_up(name, seed=seed) for seed in (0, 1, 2, 3)}
    held = [sequences_of(split) for split in (runs[0].validation, runs[0].test)]
    assert not held[0] & held[1]
    for splits in runs.values():
        assert not sequences_of(splits.train) & (held[0] | held[1])
        # Runs of other seeds are compared on the same sequences.
        assert [sequences_of(split) for split in (splits.validation, splits.test)] == held
    assert not sequences_of(runs[0].train) & sequences_of(runs[1].train)
    assert made_up(name, **{"data.validation": 0.0}).validation is None


def test_pixels_are_a_sequence_row_by_row_or_in_one_order_for_all():
    images = jnp.arange(2 * 3 * 4 * 2.0).reshape(2, 3, 4, 2)
    rows, mixed = (DataSpec("test", (12, 2), ("a", "b"), pixels=order).prepare(images) for order in ("rows", "permuted"))
    np.testing.assert_array_equal(rows[1, 5], images[1, 1, 1])
    assert not np.array_equal(mixed, rows)
    np.testing.assert_array_equal(np.sort(mixed, axis=1), rows)
    np.testing.assert_array_equal(mixed[1] - mixed[0], jnp.full((12, 2), 24.0))
    # The order is that of every run before, whose parameters would mean nothing in another.
    np.testing.assert_array_equal(mixed[0, :, 0] / 2, np.random.default_rng(0).permutation(12))


def test_digits_are_read_as_sequences():
    splits = open_data("sequence_classification", "digits8x8", **{"sequence.permute": True})
    assert (splits.spec.input_shape, splits.spec.pixels, len(splits.spec.outputs)) == ((64, 1), "permuted", 10)
    assert splits.train[0]["image"].shape == (8, 8, 1)


def everything(source: Any) -> dict[str, np.ndarray]:
    return gather(source, np.arange(len(source)))


def test_texts_in_a_folder_are_splits(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, words in {"train": "banana " * 9, "Valid": "an ban", "testing": "a nab"}.items():
        (folder / f"{name}.txt").write_text(words)
    splits = open_data("language_model", "text", folder, **{"sequence.length": 8})
    assert splits.spec.symbols == splits.spec.outputs == (" ", "a", "b", "n")
    assert [split and everything(split)["length"].sum() for split in (splits.train, splits.validation, splits.test)] == [62, 5, 4]
    assert open_data("language_model", "text", folder, **{"sequence.length": 8, "data.validation": 0.0}).validation is None
    (folder / "Valid.txt").unlink()
    assert open_data("language_model", "text", folder, **{"sequence.length": 8, "data.validation": 0.0}).validation is None
    # Without a validation split, the end of the training text is held out; without a test split, the validation split is that.
    lengths = {"sequence.length": 8, "data.validation": 0.2}
    for name, counts in (("testing", [49, 12, 4]), ("VAL", [49, 12, 5])):
        (folder / f"{name}.txt").write_text("a nab" if name == "testing" else "an ban")
        splits = open_data("language_model", "text", folder, **lengths)
        assert [split and everything(split)["length"].sum() for split in (splits.train, splits.validation, splits.test)] == counts
        (folder / f"{name}.txt").unlink()
    for message in (
        f"{folder} holds train.txt but neither test.txt nor validation.txt; add one, or set config.data.dir to {folder}/train.txt.",
        f"{folder} does not hold train.txt; add it, or give one text file, which is then split.",
    ):
        with pytest.raises(UserError) as caught:
            open_data("language_model", "text", folder, **lengths)
        assert str(caught.value) == message
        (folder / "train.txt").unlink(missing_ok=True)


def test_a_table_is_cut_along_time_and_standardised_by_what_is_learned(tmp_path):
    splits: Any = open_data("sequence_prediction", "csv", write_table(tmp_path), **{"sequence.length": 16, "sequence.test": 0.2})
    values = np.loadtxt(tmp_path / "table.csv", delimiter=",", skiprows=1)
    parts = {"train": values[:210], "validation": values[210:240], "test": values[240:]}
    for name, part in parts.items():
        np.testing.assert_allclose(splits.spec.unscale(getattr(splits, name).values), part, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([splits.train.values.mean(0), splits.train.values.std(0)], [[0, 0], [1, 1]], atol=1e-5)
    assert splits.spec.outputs == ("warm", "wet")


def write_waves(folder: pathlib.Path, count: int) -> pathlib.Path:
    folder.mkdir()
    for i in range(count):
        sound.write_wav(folder / f"{i}.wav", tone(200 + 50 * i, 300, i), RATE)
    (folder / ".hidden.wav").write_text("not a sound")
    return folder


def test_whole_sounds_are_held_out(tmp_path):
    folder = write_waves(tmp_path / "sounds", 10)
    splits: Any = open_data("waveform", "wav", folder, **{"sequence.length": 40, "sequence.test": 0.2})
    parts = [len(split.values) // 300 for split in (splits.train, splits.validation, splits.test)]
    assert parts == [7, 1, 2]
    assert open_data("waveform", "wav", folder, **{"sequence.length": 40, "data.validation": 0.0}).validation is None
    few = write_waves(tmp_path / "few", 2)
    with pytest.raises(UserError) as caught:
        open_data("waveform", "wav", few, **{"sequence.length": 40})
    assert str(caught.value) == f"config.data.dir='{few}' holds 2 sound files, too few to split; cut them into more files."


def files_of(source: Any) -> set[bytes]:
    """The mixtures of a split, which is not cut into pieces."""
    return {one.tobytes() for one in everything(source)["input"]}


def test_mixtures_are_held_out_or_in_folders(tmp_path):
    write_mixtures(tmp_path)
    splits: Any = open_data("separation", "mixtures", tmp_path, **{"sequence.test": 0.25})
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [16, 2, 6]
    sets = [files_of(split) for split in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 24
    for name in ("Train", "val", "test"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        write_mixtures(tmp_path / "folders" / name)
    splits = open_data("separation", "mixtures", tmp_path / "folders", **{"sequence.length": 430})
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [36, 36, 36]
    assert splits.spec == DataSpec("mixtures", (430, 1), ("s1", "s2"), 36, sample_rate=RATE)
    assert open_data("separation", "mixtures", tmp_path / "folders", **{"data.validation": 0.0}).validation is None
    shutil.copytree(tmp_path / "s1", tmp_path / "folders" / "test" / "s3")
    with pytest.raises(UserError) as caught:
        open_data("separation", "mixtures", tmp_path / "folders")
    message = f"{tmp_path / 'folders' / 'test'} has the sources s1, s2, s3, and the training split has s1, s2; give the same."
    assert str(caught.value) == message


def test_piano_rolls_ask_for_the_keys_of_the_next_step(tmp_path):
    rolls = np.random.default_rng(0).random((3, 6, 4)) < 0.5
    lengths = np.array([6, 1, 4])
    arrays: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), rolls)
    lengths_of: dict[str, Any] = {f"{name}_lengths": lengths for name in arrays}
    np.savez(tmp_path / "rolls.npz", **arrays, **lengths_of)
    changes = {"sequence.loss": "binary"}
    splits = open_data("sequence_prediction", "piano", tmp_path / "rolls.npz", **changes)
    batch = everything(splits.train)  # a roll of one step asks for nothing
    assert batch["length"].tolist() == [5, 3]
    np.testing.assert_array_equal(batch["input"][0], rolls[0, :5])
    np.testing.assert_array_equal(batch["label"][1, :3], rolls[2, 1:4])
    np.testing.assert_array_equal(batch["counted"], np.arange(5)[None] < np.array([[5], [3]]))
    assert splits.spec.outputs == ("key 1", "key 2", "key 3", "key 4")
    assert open_data("sequence_prediction", "piano", tmp_path / "rolls.npz", **changes, **{"data.validation": 0.0}).validation is None
    np.savez(tmp_path / "short.npz", **arrays, test_lengths=np.ones(3, int))
    with pytest.raises(UserError) as caught:
        open_data("sequence_prediction", "piano", tmp_path / "short.npz", **changes)
    assert str(caught.value) == f"{tmp_path / 'short.npz'}: the test split has no sequence of 2 or more steps, which a prediction needs."


def test_series_have_the_same_channels(tmp_path):
    for split, values in {"TRAIN": "1,2", "TEST": "1,2:3,4"}.items():
        (tmp_path / f"toy_{split}.ts").write_text(f"@classLabel true up down\n@data\n{values}:up\n")
    with pytest.raises(UserError) as caught:
        open_data("sequence_classification", "ucr:toy", tmp_path)
    assert str(caught.value) == "data.name='ucr:toy': series have 1 and 2 channels; give all the same number."


NAMELESS = {
    ("sequence_classification", "wav"): "a folder that holds a folder of sound files for each class",
    ("sequence_classification", "text"): "a folder that holds a folder of .txt files for each class",
    ("sequence_prediction", "csv"): "a table, such as a .csv file",
    ("sequence_prediction", "piano"): "a .mat or .npz file of piano rolls",
    ("language_model", "text"): "a text file, or a folder with train.txt and test.txt",
    ("waveform", "wav"): "a folder of sound files",
    ("separation", "mixtures"): "a folder with mix/, s1/, s2/ and so on",
}


@pytest.mark.parametrize(("task", "name"), NAMELESS)
def test_a_folder_must_be_named_and_may_be_at_home(task, name, tmp_path, monkeypatch):
    changes = {"sequence.length": 8, **({"sequence.loss": "binary"} if name == "piano" else {})}
    with pytest.raises(UserError) as caught:
        open_data(task, name, **changes)
    assert str(caught.value) == f'config.data.dir="" gives no data for data.name={name!r}; set it to {NAMELESS[task, name]}.'
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path / "nowhere.npz")):
        open_data(task, name, "~/nowhere.npz", **changes)


MISTAKES: dict[str, tuple[Any, str]] = {
    "no such data": (
        lambda: open_data("language_model", "txt"),
        "config.data.name='txt' is not data for config.task='language_model'; use one of ('text', 'bible'). Did you mean \"text\"?",
    ),
    "no length": (
        lambda: open_data("sequence_prediction", "adding"),
        "config.sequence.length=0 gives no length for data.name='adding'; set it, such as 200.",
    ),
    "no window": (
        lambda: window_splits(config_of("sequence_prediction", "csv"), {"train": [np.zeros((40, 2))]}, ("warm", "wet"), "it", "columns"),
        "config.sequence.length=0 gives no window for data.name='csv'; set it, such as 256.",
    ),
    "nothing to learn from": (
        lambda: cut_along_time(np.zeros((2, 2)), config_of("sequence_prediction", "csv", **{"sequence.test": 0.5, "data.validation": 0.5})),
        "config.sequence.test=0.5 and config.data.validation=0.5 leave nothing to learn from; make them smaller.",
    ),
    "too short to add": (
        lambda: adding(3, 1, 0),
        'config.sequence.length=1 is too short for data.name="adding", which marks two steps; give 2 or more.',
    ),
    "too short to copy": (
        lambda: copy_memory(3, 0, 0),
        'config.sequence.length=0 is too short for data.name="copy_memory"; give 1 or more.',
    ),
    "beyond the padded size": (
        lambda: padded([np.ones((3, 1)), np.ones((6, 1))], 5),
        "data: sequence 1 has 6 steps, but 1 to 5 fit; set config.sequence.length to the longest.",
    ),
    "an empty sequence": (
        lambda: padded([np.ones((0, 1))], 5),
        "data: sequence 0 has 0 steps, but 1 to 5 fit; set config.sequence.length to the longest.",
    ),
    "shorter than a window": (
        lambda: windows([np.arange(9), np.arange(5)], 9, 0, "the training split of text"),
        "the training split of text has at most 9 samples in one piece, but a window needs config.sequence.length + 1 = 10; "
        "make it smaller, or give more data.",
    ),
    "nothing to predict": (
        lambda: windows([np.arange(1)], 9, 0, "the test split of csv", short=True),
        "the test split of csv has at most 1 samples in one piece, but 2 are needed; give more data.",
    ),
    "context of a whole window": (
        lambda: windows([np.arange(50)], 9, 9, "it"),
        "config.sequence.context=9 leaves no step to score in windows of config.sequence.length=9; make it smaller.",
    ),
    "windows too far apart": (
        lambda: windows([np.arange(50)], 9, 4, "it", stride=6),
        "config.sequence.stride=6 leaves samples out between windows of config.sequence.length=9 of which config.sequence.context=4 steps "
        "are not scored; make it at most 5.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(name):
    check_call(*MISTAKES[name])
