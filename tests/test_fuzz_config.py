"""Random overrides of a config, as they are written on the command line: accepted, or one line and exit code 2; never a traceback.

An accepted config is what it says: its values have the types of the defaults, and it survives JSON. A part of them goes on as a run does, to
the data and the model.
"""

import contextlib
import functools
import io
import pathlib
import sys
import unicodedata
from typing import Any
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import pytest
import task_cases
from selection import with_slow

from train import cli, main
from train.build import build
from train.config import check, flatten, from_json, keys_of, model_config, to_json
from train.tasks import TASKS

CASES = {task: next(case for case in task_cases.CASES.values() if case.task == task) for task in TASKS}
# What users write, by mistake or not, where a number, a word, a tuple or a flag is expected.
VALUES = st.sampled_from(
    [
        *("", "0", "1", "2", "3", "-1", "8", "1.5", "0.0", "0.1", "1e-9", "1e400", "nan", "-inf", "1_0", "٣", "0x10", "9" * 30, "9" * 5000),
        *("true", "false", "True", "None", "no", "abc", "\x1b[2J", "a\nb", "a b", "=", ":", "~", "/", "..", "\0", "'", "(", "\\", "*"),
        *("()", "(1,)", "(1, 2)", "(2, 2, 2)", "[1]", "{}", "{'a': 1}", "('a',)", "('(',)", "('a', 'b')", "(None,)", "(1.5, 'x')", "((),)"),
        *("1,2", "'a','b'", "(('head', 2.0),)", "(('head', 'x'),)", "((1, 2),)", "((-1,),)", "(True,)", "(1e400,)", "(" * 300, "1+1", "x.y()"),
        *("jit", "pmap", "bfloat16", "lax", "sgd", "linear", "skip", "last", "mean", "max", "dice", "cross_entropy+dice", "SAME", "relu", "batch"),
    ]
) | st.text(max_size=5)  # fmt: skip
# Values of the type of each key, most of which a run can use.
PLAUSIBLE = {
    bool: ("true", "false"),
    int: ("0", "1", "2", "3", "5", "8", "64", "-1"),
    float: ("0", "1e-9", "0.1", "0.5", "1", "2", "100"),
    str: ("", "a", ".", "relu", "gelu", "batch", "group", "layer", "mean", "max", "last", "same", "valid", "None", "."),
    tuple: ("()", "(0,)", "(1,)", "(2, 3)", "(0, 1)", "(2, 2, 2)", "(-1, 2)", "(1.5,)", "((1, 2), (3,))", "('dark', 'light')", "('a', 'b')",
            "('kernel',)", "('(',)", "('Norm', 'bias')", "(('kernel', 2.0),)", "(('kernel', 'x'),)", "(('kernel', -1e400),)", "('kernel', 2)",
            "(None,)", "(True, False)"),
    type(None): ("None", "1", "a"),
}  # fmt: skip


@functools.cache
def config_file(task: str, folder: str) -> pathlib.Path:
    """The config.json of a tiny run, beside its data."""
    path = pathlib.Path(folder, task)
    path.mkdir()
    config = CASES[task].config(path)
    (path / "config.json").write_text(to_json(config))
    return path / "config.json"


def keys(task: str) -> st.SearchStrategy[str]:
    config = CASES[task].model[1]
    known = [*keys_of(task), *(f"model.{field}" for field in config)]
    odd = [
        "name",
        "task",
        "model",
        "model.name",
        "data",
        "optim",
        "",
        ".",
        "data.",
        "optim.lr.x",
        "optim.lr[0]",
        "model.features[0]",
        "a b",
        "lr",
        "batchsize",
        "model.x",
    ]
    return st.sampled_from(known) | st.sampled_from(known) | st.sampled_from(odd) | st.text(max_size=4)


def words(task: str) -> st.SearchStrategy[list[str]]:
    joined = st.builds("--config.{}={}".format, keys(task), VALUES)
    others = (
        st.builds("--config.{}".format, keys(task))
        | st.builds("--noconfig.{}".format, keys(task))
        | st.sampled_from(["--lr=3", "-x", "optim.lr=3", "--config", "--", "--config.optim.lr", "extra", "--workdir", "\x1b"])
        | VALUES
    )
    return st.lists(joined | joined | joined | joined | others, min_size=1, max_size=3)


def fitting(task: str) -> st.SearchStrategy[list[str]]:
    """Words whose values have the types of their keys."""
    model = model_config(CASES[task].model[0], **CASES[task].model[1])
    described = {key: (type(one.default), one.choices) for key, one in keys_of(task).items()}
    fields = {f"model.{field}": (type(value), ()) for field, value in model.items() if field != "name"}
    pairs = [f"--config.{key}={value}" for key, (kind, known) in (described | fields).items() for value in known or PLAUSIBLE[kind]]
    return st.lists(st.sampled_from(pairs), min_size=1, max_size=3)


def outcome(arguments: list[str], job: Any) -> tuple[int, str]:
    """The exit code of a job with these arguments, and what it says on stderr."""
    stderr = io.StringIO()

    def end(code: int) -> None:
        raise SystemExit(code)

    with (
        mock.patch.object(sys, "argv", ["main", *arguments]),
        mock.patch.object(cli, "_end", end),
        contextlib.redirect_stderr(stderr),
        pytest.raises(SystemExit) as exit,
    ):
        cli.run(job)
    return int(exit.value.code or 0), stderr.getvalue()


def loaded() -> Any:
    """The config of the command line, as `train.main` loads it."""
    parser = cli.parser(main)
    cli.add_config_flag(parser)
    parser.add_argument("--workdir")
    args, overrides = cli.parse_with_config(parser)
    return cli.load_config(args.config, overrides)


def checked() -> None:
    config = loaded()
    check(config)
    described, values = keys_of(config.task), flatten(config.to_dict())
    for key, one in described.items():
        assert isinstance(values[key], type(one.default)) or (isinstance(one.default, float) and isinstance(values[key], int)), key
    assert to_json(from_json(to_json(config))) == to_json(config)


def built() -> None:
    config = loaded()
    check(config)
    build(config, TASKS[config.task].open(config).spec)


def law(arguments: list[str], job: Any) -> None:
    code, said = outcome(arguments, job)
    lines = [line for line in said.splitlines() if not line.startswith(("note: ", "warning: "))]
    assert code in (0, 2)
    assert len(lines) == (1 if code else 0), said
    assert not code or lines[0].startswith("error: "), said
    assert len(said) < 5000 and not any(unicodedata.category(sign) == "Cc" for line in lines for sign in line), ascii(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("configs"))


def examples(share: float) -> int:
    return max(1, round(share * hypothesis.settings().max_examples))


# Words that were once answered with a traceback, or with more than a line.
FOUND = (
    ["--config.optim.lr[0]=1"],
    ["--config.model.features[0]=7"],
    ["--config.model.features[0"],
    ["--config.model[0]=3"],
    ["--config.seed=" + "9" * 5000],
    ["\x1b"],
    ["9" * 15000],
    ["--config.optim.lr_multipliers=(('kernel', 'x'),)"],
    ["--config.optim.lr_multipliers=((1, 2),)"],
    ["--config.optim.lr_multipliers=(('kernel', None),)"],
    ["--config.optim.lr_multipliers=(('kernel', -1e400),)"],
)


@pytest.mark.parametrize("given", FOUND, ids=lambda given: ascii(given[0])[:50])
def test_what_once_failed_is_refused_in_one_line(given, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = [f"--config={config_file('classification', folder)}", *given]
    law(arguments, built)
    assert outcome(arguments, built)[0] == 2


@pytest.mark.parametrize(("drawn", "run", "share"), [(words, checked, 4), (fitting, built, 1)], ids=["checked", "built"])
@pytest.mark.parametrize("task", with_slow(TASKS, kept=("classification", "detection", "language_model", "sequence_labelling")))
def test_overrides_are_accepted_or_refused_in_one_line(task, drawn, run, share, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    file = f"--config={config_file(task, folder)}"

    @hypothesis.settings(max_examples=examples(share))
    @hypothesis.given(drawn(task))
    def check_words(given):
        law([file, *given], run)

    check_words()
