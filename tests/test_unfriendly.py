"""Inputs as strangers give them: absurd numbers, names that are no text, damaged files, options given twice. Each gets one line."""

import argparse
import io
import json
import sys

import pytest
from reading import check_call, written
from task_cases import CASES
from tiny_runs import refused, tiny

from dilax import DataSpec, inputs
from dilax.loading import read_status, read_variables
from train import build, cli, folder
from train.config import check
from train.data.fingerprint import changes
from train.data.readers.files import labelled_splits
from train.files import write_text
from train.tasks import TASKS
from train.tasks.base import table_lines
from train.writers import read_history

NUMBERS = {
    "endless": ({"total_epochs": float("inf")}, "config.total_epochs=inf is out of range; give a finite number above 0."),
    "no rate": ({"optim.lr": float("inf")}, "config.optim.lr=inf is out of range; give a finite number of 0 or more."),
    "no number": ({"augment.scale": float("nan")}, "config.augment.scale=nan is out of range; give a number of 0 or more."),
    "no screen": ({"data.image_size": 10**6}, "config.data.image_size=1000000 is out of range; give a number from 0 to 16384."),
    "names of classes": ({"data.classes": ("cat",)}, "config.data.classes=('cat',) must hold whole numbers, such as (0, 2), or be ()."),
    "half a class": ({"data.classes": (0.5, 1)}, "config.data.classes=(0.5, 1) must hold whole numbers, such as (0, 2), or be ()."),
    "numbers to freeze": ({"frozen": (1,)}, "config.frozen=(1,) must hold texts, such as ('a', 'b'), or be ()."),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_absurd_values(name):
    given, message = NUMBERS[name]
    check_call(lambda: check(tiny(**given)), message)


def test_more_steps_than_are_counted():
    text = refused(lambda: build.build(tiny(total_epochs=1e300), DataSpec("digits8x8", (8, 8, 1), tuple("0123456789"), 640)))
    assert text == (
        "config.total_epochs=1e+300 of 640 training records are 1e+301 steps of config.batch_size=64, and a run counts up to 2147483647; "
        "choose fewer epochs."
    )


WRONG_TYPES = {"seed": "zero", "batch_size": 2.5, "report": "yes", "init_from": 3, "frozen": "head", "optim": {"lr": "fast"}}


@pytest.mark.parametrize("key", WRONG_TYPES)
def test_wrong_types_in_the_config_of_a_run(key, tmp_path):
    """As a hand that edits the file leaves it."""
    values = tiny().to_dict()
    values[key] = {**values[key], **WRONG_TYPES[key]} if key == "optim" else WRONG_TYPES[key]
    path = written(tmp_path / "config.json", json.dumps(values))
    assert " must be " in refused(lambda: check(folder.read_config(path)))


DAMAGED = {
    "step": ("seven", "step is of the wrong type"),
    "run": (7, "run is of the wrong type"),
    "train_seconds": (None, "train_seconds is of the wrong type"),
    "records": ([], "records is of the wrong type"),
    "data": ({"name": "x", "input_shape": "8x8", "outputs": ["a"]}, "input_shape is of the wrong type"),
}


@pytest.mark.parametrize("key", DAMAGED)
def test_wrong_types_in_the_status_of_a_run(key, tmp_path):
    value, reason = DAMAGED[key]
    folder.write_status(tmp_path, finished=False, model={"name": "dilated_cnn"}, data=DataSpec("toy", (8, 8, 1), ("0", "1")).to_json())
    status = json.loads((tmp_path / "run.json").read_text())
    del status["seal"]  # as if it had been written so
    (tmp_path / "run.json").write_text(json.dumps({**status, key: value}))
    path = tmp_path / "run.json"
    check_call(lambda: read_status(tmp_path), f"{path} is damaged ({reason}); restore it, or train the run again with --restart.")


def test_a_status_without_the_id_of_its_run(tmp_path):
    folder.write_status(tmp_path, finished=False, model={"name": "dilated_cnn"}, data=DataSpec("toy", (8, 8, 1), ("0", "1")).to_json())
    folder.write_config(tmp_path, tiny(), 0)
    status = json.loads((tmp_path / "run.json").read_text())
    del status["seal"]  # as if it had been written so
    del status["run"]
    (tmp_path / "run.json").write_text(json.dumps(status))
    assert "it lacks run" in refused(lambda: folder.read_run(tmp_path))


def test_damaged_records_metrics_and_best(tmp_path):
    assert changes({"training": 5}, {"training": {"records": 1, "fields": {}}}) == ["what is known of the earlier records is damaged"]
    (tmp_path / "metrics.jsonl").mkdir()
    assert refused(lambda: read_history(tmp_path)).startswith(f"{tmp_path / 'metrics.jsonl'} cannot be read: ")
    folder.write_status(tmp_path, finished=True, model={"name": "dilated_cnn"}, data=DataSpec("toy", (8, 8, 1), ("0", "1")).to_json())
    (tmp_path / "best").mkdir()
    assert f"{tmp_path} is finished, and best/ has lost its parameters" in refused(lambda: read_variables(tmp_path))


def test_data_given_twice():
    text = "--data=a and --config.data.dir=b both say where the data is; give one of them."
    check_call(lambda: cli.load_config("configs/voc.py", ["--config.data.dir=b"], data="a"), text)
    assert cli.load_config("configs/voc.py", ["--config.data.dir=a"], data="a").data.dir == "a"


def test_the_last_of_two_values_of_a_tuple_counts():
    config = cli.load_config("configs/digits.py", ["--config.frozen=('a','b')", "--config.frozen=('c',)"])
    assert config.frozen == ("c",)


FILES = {
    "nothing": (
        "def get_config():\n    pass",
        "get_config of {0} returns None, not a ConfigDict; begin it with train.config.default_config(...).",
    ),
    "a dict": (
        "def get_config():\n    return {}",
        "get_config of {0} returns {{}}, not a ConfigDict; begin it with train.config.default_config(...).",
    ),
    "a division": ("def get_config():\n    return 1 / 0", "the config file {0} fails at line 2: ZeroDivisionError: division by zero."),
    "a misspelt part": (
        "from train.config import default_config\ndef get_config():\n    default_config('x').optm.lr = 1",
        """the config file {0} fails at line 3: AttributeError: 'optm' Did you mean "optim" instead of "optm".""",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_config_files_that_fail(name, tmp_path):
    content, message = FILES[name]
    path = written(tmp_path / "c.py", content)
    check_call(lambda: cli.load_config(str(path)), message.format(path))


def test_a_config_file_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "c.py", "from train.config import default_config\ndef get_config(v=''):\n    return default_config('x' + v)")
    assert [cli.load_config(f"~/c.py{more}").name for more in ("", ":y")] == ["x", "xy"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x"])
def test_the_name_of_a_run_is_that_of_a_folder(name):
    text = f"config.name={name!r} must be the name of a folder, such as 'digits'; its place is given by --workdir."
    check_call(lambda: check(tiny(name=name)), text)


SEGMENTED = {
    "a name twice": (
        {"data.class_names": ("ground", "cell", "ground")},
        "config.data.class_names names 'ground' twice; give each class a name of its own.",
    ),
    "weights of nothing": (
        {"segmentation.class_weights": (0.0, 0.0)},
        "config.segmentation.class_weights=(0.0, 0.0) leaves nothing to learn; give one above 0.",
    ),
}


@pytest.mark.parametrize("name", SEGMENTED)
def test_classes_that_mean_nothing(name, tmp_path):
    given, message = SEGMENTED[name]
    config = CASES["masks"].config(tmp_path, **given)
    check_call(lambda: (check(config), TASKS["segmentation"].open(config)), message)


# Names

BYTES = "caf\udce9.png"  # the name b"caf\xe9.png", as Python reads it


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_printed_as_they_are(encoding, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit):
        cli.run(lambda: print(BYTES, "é"))
    assert out.buffer.getvalue() == b"caf\xe9.png " + ("é".encode() if encoding == "utf-8" else rb"\xe9") + b"\n"


def test_reports_hold_names_that_are_not_text(tmp_path):
    write_text(tmp_path / "report.md", BYTES)
    assert (tmp_path / "report.md").read_text() == r"caf\udce9.png"


@pytest.mark.parametrize(("csv", "line"), [(False, r"new\nline" "\t" r"a\tb"), (True, '"new\nline",a\tb')])
def test_a_row_is_a_line(csv, line):
    args = argparse.Namespace(csv=csv)
    assert list(table_lines(args, ("input", "class"), [("new\nline", "a\tb")]))[-1] == line
    assert list(table_lines(args, ("text",), [("two\nlines",)]))[-1] == ('"two\nlines"' if csv else "two\nlines")


def test_what_is_left_out_is_said_once(tmp_path, capsys):
    CASES["texts"].config(tmp_path)
    written(tmp_path / "data" / "notes.txt", "mine")
    labelled_splits(tmp_path / "data", (".txt",), quiet=True)
    assert capsys.readouterr().err == ""
    cli.load_config("configs/my_text.py", data=str(tmp_path / "data"))
    assert capsys.readouterr().err == ""


def test_texts_are_named():
    with pytest.raises(ValueError, match=r"^b\.txt: character 'z' at position 2 is not in the vocabulary of 2 characters"):
        inputs.encode("abz", ("a", "b"), "characters", name="b.txt")
