"""Runs on texts, tables and series from files to predictions: their reports, streams of lines, options of the draw, mistakes."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sequence_runs import FOLDER, answers, data_of, dir_of, open_data, outputs_of, predict, table_rows, trained

import dilax
from dilax.errors import UserError
from dilax.loading import read_status
from train import cli
from train import predict as command
from train.data.readers import series, text

LEARNED: dict[str, Callable[[dict[str, float]], bool]] = {
    "text": lambda metrics: metrics["test/bits_per_character"] < 1.5,
    "table": lambda metrics: metrics["test/mse"] < 0.1,
    "series": lambda metrics: metrics["test/accuracy"] > 0.9,
    "reviews": lambda metrics: metrics["test/accuracy"] > 0.9,
}
SHOWN = {
    "text": [],
    "table": ["prediction.png"],
    "series": ["predictions.png", "confusion_matrix.png"],
    "reviews": ["confusion_matrix.png"],
}


@pytest.mark.parametrize("name", LEARNED)
def test_runs_learn(name):
    trained(name)
    assert LEARNED[name](read_status(FOLDER / name / "run")["metrics"])


@pytest.mark.parametrize("name", SHOWN)
def test_reports_show_what_was_made(name):
    trained(name)
    report = (FOLDER / name / "run" / "report" / "report.md").read_text()
    for file in [*SHOWN[name], "learning_curves.png"]:
        assert f"]({file})" in report


def test_the_report_of_a_text_shows_a_sample():
    trained("text")
    folder = FOLDER / "text" / "run" / "report"
    sample = (folder / "sample.txt").read_text()
    assert len(sample) == 12 + 20 + 1
    assert sample[-21:-1].splitlines()[0] in (folder / "report.md").read_text()


def test_the_report_of_a_table_says_what_there_is_to_beat():
    trained("table")
    changes = np.diff(table_rows()[-80:], axis=0) / table_rows()[:280].std(0)
    words = f"A forecast that repeats each row has a mean squared error of {np.square(changes).mean():.4f}."
    assert words in (FOLDER / "table" / "run" / "report" / "report.md").read_text()


def test_a_text_is_continued_as_by_the_whole_network():
    """Greedily: every symbol is the most probable after all that came before."""
    (line,) = predict("text", "the r", "--steps=7", "--temperature=0")
    assert (line[:5], len(line)) == ("the r", 12)
    codes = text.encode(line, trained("text").setup.spec.symbols, "characters")
    assert outputs_of("text", codes)[4:-1].argmax(-1).tolist() == codes[5:].tolist()
    again, other = (predict("text", "the r", "in", "--steps=7", f"--seed={seed}") for seed in (1, 2))
    assert again == predict("text", "the r", "in", "--steps=7", "--seed=1")
    assert again != other


def test_a_stream_of_lines_remembers_what_came_before():
    lines = ["the rain\n", "in spain\n"]
    pieces = answers("text", "".join(lines), "--steps=9", "--temperature=0")
    assert all(piece.endswith("\n") and len(piece) <= 10 for piece in pieces)
    before = ""
    for line, piece in zip(lines, pieces, strict=True):
        before += line
        (expected,) = predict("text", before, "--steps=9", "--temperature=0")
        expected = expected[len(before) :]
        expected = expected[: expected.index("\n") + 1] if "\n" in expected else expected + "\n"
        assert piece == expected
        before += piece if len(piece) <= 9 else piece[:-1]


def numbers(lines: list[str]) -> np.ndarray:
    return np.array([[float(cell) for cell in line.split(",")] for line in lines])


def check_forecast(values: np.ndarray, lines: list[str]) -> None:
    """Check that each row after a table is what the whole network gives for all rows before it."""
    spec, rows = trained("table").setup.spec, numbers(lines)
    outputs = spec.unscale(outputs_of("table", spec.scale(np.concatenate([values, rows]))))
    np.testing.assert_allclose(rows, outputs[len(values) - 1 : -1], rtol=1e-3, atol=1e-3)


def test_a_table_is_forecast_row_by_row():
    head, *rows = predict("table", dir_of("table"), "--steps=3")
    assert (head, len(rows)) == ("warm,wet", 3)
    check_forecast(table_rows(), rows)
    both = predict("table", dir_of("table"), dir_of("table"), "--steps=1")
    assert (len(both), both[0]) == (6, f"# {dir_of('table')}")


def test_a_stream_of_rows_is_answered_row_by_row():
    run = trained("table")
    lines = pathlib.Path(dir_of("table")).read_text().splitlines(keepends=True)[:40]
    head, *rows = answers("table", "".join(lines))
    assert (answers("table", ""), head, len(rows)) == (["warm,wet\n"], "warm,wet\n", 39)
    expected = run.setup.spec.unscale(outputs_of("table", run.setup.spec.scale(table_rows()[:39])))
    np.testing.assert_allclose(numbers(rows), expected, rtol=1e-3, atol=1e-3)
    # A byte order mark, names, blank lines and dates change nothing.
    plain = ["11,90\n", "12,80\n"]
    dressed = "\ufeff" + "\n".join(["day,warm,wet\n", *(f"2021-1-1,{line}" for line in plain), ""])
    assert answers("table", dressed) == answers("table", "".join(plain))


def test_missing_cells_of_a_table_are_filled(tmp_path, capsys):
    """In the data as in what is predicted from; or named."""
    rows = table_rows()
    rows[50:53, 0] = rows[120, 1] = rows[350, 0] = np.nan
    path = tmp_path / "holes.csv"
    path.write_text("warm,wet\n" + "".join(",".join("" if np.isnan(cell) else f"{cell:.5f}" for cell in row) + "\n" for row in rows))
    at = np.arange(400)
    filled = {
        "interpolate": np.stack([np.interp(at, at[~np.isnan(column)], column[~np.isnan(column)]) for column in rows.T], 1),
        "forward": np.stack([column[np.maximum.accumulate(np.where(np.isnan(column), 0, at))] for column in rows.T], 1),
    }
    for missing, values in filled.items():
        splits: Any = open_data("table", path, **{"data.missing": missing})
        np.testing.assert_allclose(splits.spec.unscale(splits.train.values), values[:280], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(splits.spec.unscale(splits.test.values), values[320:], rtol=1e-4, atol=1e-3)
    assert "missing cells were interpolated: 5 in 2 of 2 columns." in capsys.readouterr().err
    with pytest.raises(UserError, match=r'holes\.csv, line 52: the cell in column "warm" is missing \(""\); fill it in, or remove the row'):
        open_data("table", path, **{"data.missing": "error"})
    _, *lines = predict("table", path, "--steps=2")  # its config says "interpolate"
    check_forecast(filled["interpolate"], lines)


def test_forecast_feeds_back_its_outputs():
    model: Any = dilax.models.create("tcn", out_features=2, kernel_size=3, features=(4, 4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 2)), jnp.float32)
    variables = jax.tree.map(lambda leaf: leaf * 20, jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x))
    rows = jax.jit(lambda variables, x: dilax.forecast(model, variables, x, 4))(variables, x)
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, jnp.concatenate([x, rows], axis=1))
    np.testing.assert_allclose(rows, outputs[:, 8:-1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"^forecast: x is float32 of shape \(3, 0, 2\); give floats"):
        dilax.forecast(model, variables, x[:, :0], 4)
    wide = dilax.models.create("tcn", out_features=3, kernel_size=3, features=(4, 4))
    with pytest.raises(UserError, match=r"^forecast: the model maps \(3, 9, 2\) to \(3, 9, 3\)"):
        jax.eval_shape(lambda: dilax.forecast(wide, wide.init(jax.random.key(0), x, train=False), x, 4))


def test_series_are_classified():
    path = data_of("series") / "toy_TEST.ts"
    lines = [line.split("\t") for line in predict("series", path)]
    assert [name for name, _, _ in lines[:2]] == [f"{path}:1", f"{path}:2"]
    right = [answer == label for (_, answer, _), label in zip(lines, series.read_ts(path)[1], strict=True)]
    assert np.mean(right) == pytest.approx(read_status(FOLDER / "series" / "run")["metrics"]["test/accuracy"])


def test_texts_are_classified_by_files_and_by_lines(tmp_path):
    files = []
    for name, words in {"a": "fine rain", "b": "the poor plain", "c": "in spain " * 9 + "fine"}.items():
        files.append(str(tmp_path / f"{name}.txt"))
        (tmp_path / f"{name}.txt").write_text(words)
    rows = [line.split("\t") for line in predict("reviews", *files)]
    assert [row[:2] for row in rows[:2]] == [[files[0], "good"], [files[1], "bad"]]
    assert len(rows) == 3
    # Blank lines are counted, and have no answer.
    lines = answers("reviews", "fine rain\n\nthe poor plain\n")
    assert [piece.split("\t") for piece in lines] == [["1", "good", rows[0][2] + "\n"], ["3", "bad", rows[1][2] + "\n"]]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "one.csv").write_text("warm\n1\n2\n")
    (folder / "turned.csv").write_text("wet,warm\n1,2\n3,4\n")
    (folder / "end.csv").write_text("warm,wet\n1,2\n1,nan\n")
    (folder / "word.csv").write_text("warm,wet\n1,2\n1,x\n")
    (folder / "odd.txt").write_text("thé"[1:], encoding="utf-8")
    (folder / "long.ts").write_text("@classLabel true up down\n@data\n" + ",".join("1" * 40) + ":up\n")
    (folder / "two.ts").write_text("@classLabel true up down\n@data\n1,2:3,4:up\n")
    return folder


MISTAKES = {
    "an empty prompt": ("text", [""], "the text is empty; give at least one character."),
    "a character outside the vocabulary": ("text", ["thé"], "character '\\xe9' at position 2 is not in the vocabulary of 16 characters, "),
    "a series that is too long": (
        "series",
        ["long.ts"],
        "long.ts:1 has 40 steps, and the run takes 16; shorten it, or train with a larger",
    ),
    "more channels": ("series", ["two.ts"], "two.ts:1 has 2 channels, and the run was trained on 1; give the same channels."),
    "other columns": ("table", ["one.csv"], "one.csv has the columns warm, and the run was trained on warm, wet."),
    "columns in another order": ("table", ["turned.csv"], "turned.csv has the columns wet, warm, and the run was trained on warm, wet."),
    "a word in a table": ("table", ["word.csv"], 'word.csv, line 3: the cell in column "wet" is "x", which is not a number;'),
    "no end of a gap": ("table", ["end.csv"], 'end.csv, line 3: the cell in column "wet" is missing, and there is no value below it'),
    "a character that no text had": ("reviews", ["odd.txt"], "character '\\xe9' at position 1 is not in the vocabulary of "),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line(wrong, case):
    name, inputs, words = MISTAKES[case]
    given = [wrong / one if "." in one else one for one in inputs]
    with pytest.raises(UserError) as caught:
        predict(name, *given, out=wrong / "out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (wrong / "out").exists()


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("table", "1,2\n1,x\n", "line 2: '1,x' is not a row of 2 numbers: warm, wet."),
        ("table", "1,x\n", "line 1: '1,x' is not a row of 2 numbers: warm, wet."),
        ("table", "1,\n", "line 1: '1,' is not a row of 2 numbers: warm, wet."),
        ("table", "9,1,2\n", "line 1: '9,1,2' is not a row of 2 numbers: warm, wet."),
        ("table", "1e39,2\n", "line 1: '1e39,2' is not a row of 2 numbers: warm, wet."),
        ("table", "wet,warm\n1,2\n", "line 1 has the columns wet, warm, and the run was trained on warm, wet."),
        ("text", "#\n", "character '#' at position 0 is not in the vocabulary of "),
    ],
)
def test_mistakes_in_a_stream_get_one_line(name, lines, words):
    with pytest.raises(UserError) as caught:
        answers(name, lines)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def printed(monkeypatch, capsys, *words: str) -> tuple[str, str, int | str | None]:
    """Standard output, standard error and exit code of train.predict on the run of a text."""
    run = trained("text")
    capsys.readouterr()
    monkeypatch.setattr(command, "load_trained", lambda workdir: run)
    monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(FOLDER / "text" / "run"), *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(command.main)
    return *capsys.readouterr(), ended.value.code


def test_a_draw_among_the_most_probable_alone_is_greedy(monkeypatch, capsys):
    lines = {
        word: printed(monkeypatch, capsys, "the r", "--steps=20", word)
        for word in ("--temperature=0", "--top_k=1", "--top_p=1e-6", "--seed=1")
    }
    assert lines["--temperature=0"] == lines["--top_k=1"] == lines["--top_p=1e-6"] != lines["--seed=1"]
    assert all((err, code) == ("", 0) for _, err, code in lines.values())


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("--steps=0", "at least 1"),
        ("--temperature=-1.0", "at least 0"),
        ("--temperature=nan", "at least 0"),
        ("--top_k=-2", "at least 0"),
        ("--top_p=0.0", "above 0 and at most 1"),
        ("--top_p=1.5", "above 0 and at most 1"),
    ],
)
def test_options_out_of_range_get_one_line(monkeypatch, capsys, word, rule):
    assert printed(monkeypatch, capsys, "the r", word) == ("", f"error: {word} must be {rule}.\n", 2)
