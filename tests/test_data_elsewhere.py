"""Data that a trained run is scored on later: prepared as what the run was trained on, never by numbers of its own."""

import pathlib
import sys

import numpy as np
import pytest
from reading import check_call
from task_cases import CASES, RATE, WORDS, random

from train import cli, evaluate, predict, prepare
from train.data.readers import sound
from train.data.source import gather
from train.tasks import TASKS


def first_records(splits, field: str = "input") -> np.ndarray:
    return gather(splits.test, np.arange(3))[field]


def opened(name: str, folder: pathlib.Path, like=None, **changes):
    return TASKS[CASES[name].task].open(CASES[name].config(folder, **changes), like)


@pytest.mark.parametrize("name", ["sounds", "waves", "mixtures"])
def test_sounds_are_brought_to_the_rate_of_the_run(name, tmp_path, capsys):
    plain = opened(name, tmp_path)
    config = CASES[name].config(tmp_path)
    for path in pathlib.Path(config.data.dir).rglob("*.wav"):
        samples, rate = sound.read_sound(path)
        sound.write_wav(path, np.repeat(samples, 2), 2 * rate)
    capsys.readouterr()
    # Opened as it is written above, not anew by the case.
    faster = TASKS[CASES[name].task].open(config, plain.spec)
    assert faster.spec.sample_rate == plain.spec.sample_rate == RATE
    assert f"files were resampled to {RATE} Hz" in capsys.readouterr().err
    assert (faster.spec.mean, faster.spec.std, faster.spec.symbols) == (plain.spec.mean, plain.spec.std, plain.spec.symbols)
    assert first_records(faster).shape[1] == pytest.approx(first_records(plain).shape[1], abs=1)
    evaluate.check_data(plain.spec, faster.spec)


def test_a_table_is_scaled_as_that_of_the_run(tmp_path):
    plain = opened("table", tmp_path)
    values = random(0).normal(size=(300, 2)) * (3, 50) + (40, -200)
    elsewhere = tmp_path / "other.csv"
    elsewhere.write_text("warm,wet\n" + "".join(f"{a},{b}\n" for a, b in values))
    found = opened("table", tmp_path, plain.spec, **{"data.dir": str(elsewhere)})
    assert (found.spec.mean, found.spec.std) == (plain.spec.mean, plain.spec.std)
    expected = (values[240] - np.array(plain.spec.mean)) / np.array(plain.spec.std)  # a fifth is the test split
    np.testing.assert_allclose(first_records(found)[0, 0], expected, rtol=1e-5)
    elsewhere.write_text("warm,wet,wind\n" + "1.5,2,3\n2.5,3,4\n" * 100)
    message = f"{elsewhere} has 3 channels, and the run was trained on 2; give data of the same channels."
    check_call(lambda: opened("table", tmp_path, plain.spec, **{"data.dir": str(elsewhere)}), message)


def test_a_text_has_the_codes_of_the_run(tmp_path):
    plain = opened("text", tmp_path)
    elsewhere = tmp_path / "other.txt"
    elsewhere.write_text("rain in spain\n" * 40)  # with fewer characters
    found = opened("text", tmp_path, plain.spec, **{"data.dir": str(elsewhere)})
    assert found.spec.symbols == plain.spec.symbols == tuple(sorted(set(WORDS)))
    x = first_records(found)[0, :4]
    assert [plain.spec.symbols[code] for code in x] == list(("rain in spain\n" * 40)[-28:][:4])
    elsewhere.write_text("RAIN\n" * 100)
    with pytest.raises(ValueError, match="character 'R' at position 0 is not in the vocabulary"):
        opened("text", tmp_path, plain.spec, **{"data.dir": str(elsewhere)})


@pytest.mark.parametrize(
    ("module", "words", "field"),
    [
        (evaluate, ["--data_dir=~/x"], "data_dir"),
        (predict, ["--out=~/x", "a.png"], "out"),
        (prepare, ["--data_dir=~/x", "mnist"], "data_dir"),
    ],
)
def test_home_in_flags(module, words, field, tmp_path, monkeypatch):
    """Most shells leave the ~ after = as it is."""
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cli.Parser, "parse_args", lambda parser: seen.append(parser.parse_known_args(words)[0]) or sys.exit(0))
    monkeypatch.setattr(cli, "run_parser", lambda module, _: cli.parser(module))
    with pytest.raises(SystemExit):
        module.main()
    assert str(getattr(seen[0], field)) == str(tmp_path / "x")
