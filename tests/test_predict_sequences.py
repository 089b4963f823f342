"""Runs on sequences from a file to a prediction: texts, tables, series and sounds; their reports; streams; mistakes."""

import io
import pathlib
import subprocess
import sys
import wave
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from train.predict_sequences import Options, predict
from train.predict_stream import stream

import dilax
from dilax.errors import UserError
from train import cli, loop, run
from train import predict as command
from train.config import default_config, model_config
from train.data.readers import series, tables, text
from train.data.readers import sound as sounds_

WORDS = "the rain in spain stays mainly in the plain\nand the grain\n"
RATE = 8000


def options(folder: pathlib.Path, **changes: Any) -> Options:
    return Options(**{**dict(steps=7, sampling={}, seed=0, folder=folder, replace=False), **changes})


def answers(trained: run.Trained, lines: str, options: Options) -> list[str]:
    return [piece.decode() for piece in stream(trained, io.BytesIO(lines.encode()), options)]


def write_sounds(folder: pathlib.Path) -> None:
    """Tones of two pitches and several lengths, in folders of their labels."""
    random = np.random.default_rng(0)
    for label, pitch in (("high", 1500), ("low", 300)):
        (folder / label).mkdir(parents=True)
        for i in range(10):
            time = np.arange(1600 + 200 * i) / RATE
            tone = 0.5 * np.sin(2 * np.pi * pitch * time + i) + 0.01 * random.normal(size=len(time))
            sounds_.write_wav(folder / label / f"{i}.wav", tone.astype(np.float32), RATE)


def write_mixtures(folder: pathlib.Path) -> None:
    """A low tone and a high one at a time, of several lengths."""
    random = np.random.default_rng(2)
    for part in ("mix", "s1", "s2"):
        (folder / part).mkdir(parents=True)
    for i in range(24):
        time = np.arange(400 + 30 * (i % 4)) / RATE
        low, high = (
            0.4 * np.sin(2 * np.pi * pitch * (1 + 0.1 * random.normal()) * time + 6 * random.random()).astype(np.float32)
            for pitch in (200, 1500)
        )
        for part, sound in {"mix": low + high, "s1": low, "s2": high}.items():
            sounds_.write_wav(folder / part / f"{i}.wav", sound, RATE)


def write_texts(folder: pathlib.Path) -> None:
    """Words of which one alone tells the label."""
    random = np.random.default_rng(3)
    for label, word in (("good", "fine"), ("bad", "poor")):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            words = [*random.choice(WORDS.split(), 1 + i % 5), word]
            (folder / label / f"{i}.txt").write_text(" ".join(random.permutation(words)) + "\n")


def write_table(path: pathlib.Path) -> None:
    steps = np.arange(400)
    rows = np.stack([10 + 3 * np.sin(steps / 5), 100 * np.cos(steps / 7)], 1)
    path.write_text("date,warm,wet\n" + "".join(f"2020-{i},{a:.5f},{b:.5f}\n" for i, (a, b) in enumerate(rows)))


def write_series(folder: pathlib.Path) -> None:
    random = np.random.default_rng(1)
    for split in ("TRAIN", "TEST"):
        lines = ["@problemName toy", "@univariate true", "@classLabel true up down", "@data"]
        for i in range(24):
            count, label = 12 + i % 5, ("up", "down")[i % 2]
            values = (1 if i % 2 == 0 else -1) * np.arange(count) / 5 + 0.1 * random.normal(size=count)
            lines.append(",".join(f"{value:.4f}" for value in values) + f":{label}")
        (folder / f"toy_{split}.ts").write_text("\n".join(lines) + "\n")


TCN = dict(kernel_size=2, features=(12, 12, 12))
RUNS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {  # task, data, model, changes
    "text": (
        "language_model",
        "text",
        dict(TCN, embedding_features=8),
        {"sequence.length": 24, "sequence.context": 8, "total_epochs": 4.0},
    ),
    "table": (
        "sequence_prediction",
        "csv",
        TCN,
        {"sequence.length": 32, "sequence.context": 8, "sequence.test": 0.2, "total_epochs": 30.0},
    ),
    "series": ("sequence_classification", "ucr:toy", TCN, {"sequence.pool": "mean", "total_epochs": 30.0}),
    "words": ("sequence_classification", "wav", TCN, {"sequence.pool": "mean", "sequence.bands": 16, "total_epochs": 40.0}),
    "waves": (
        "waveform",
        "wav",
        dict(dilations=(1, 2, 4), features=8, skip_features=8),
        {"sequence.length": 400, "sequence.context": 8, "total_epochs": 1.0},
    ),
    "voices": (
        "separation",
        "mixtures",
        dict(features=24, bottleneck_features=12, hidden_features=16, skip_features=12, blocks=3, repeats=1),
        {"sequence.length": 400, "sequence.test": 0.2, "total_epochs": 20.0},
    ),
    "reviews": ("sequence_classification", "text", dict(features=16, dilations=(1, 2), embedding_features=8), {"total_epochs": 20.0}),
}
MODELS = {"waves": "wavenet", "voices": "conv_tasnet", "reviews": "gated_dilated_cnn"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    (folder / "text.txt").write_text(WORDS * 30)
    write_table(folder / "table.csv")
    write_series(folder)
    write_sounds(folder / "sounds")
    write_mixtures(folder / "voices_data")
    write_texts(folder / "reviews_data")
    places = {"text": "text.txt", "table": "table.csv", "series": "", "words": "sounds", "waves": "sounds"}
    for name, (task, source, fields, changes) in RUNS.items():
        config = default_config(name)
        config.task = task
        config.data.update(name=source, dir=str(folder / places.get(name, f"{name}_data")))
        config.model = {**model_config(MODELS.get(name, "tcn"), **fields)}
        config.batch_size = 8
        config.eval_every_epochs = 10.0
        config.sequence.update(sample=20)
        config.optim.update(lr=2e-2, warmup_epochs=0.1, clip_norm=1.0)
        config.compilation_cache_dir = ""
        config.update_from_flattened_dict(changes)
        assert loop.run(config.lock(), folder / name) == 0
    return SimpleNamespace(folder=folder, trained={name: run.load_trained(folder / name) for name in RUNS})


def test_they_have_learned(runs):
    figures = {name: run.read_status(runs.folder / name)["metrics"] for name in RUNS}
    assert figures["text"]["test/bits_per_character"] < 1.5
    assert figures["table"]["test/mse"] < 0.1
    assert figures["series"]["test/accuracy"] > 0.9
    assert figures["words"]["test/accuracy"] == 1
    assert figures["waves"]["test/bits_per_sample"] < 8
    assert figures["voices"]["test/si_sdr_improvement"] > 10
    assert figures["reviews"]["test/accuracy"] > 0.9


@pytest.mark.parametrize(
    ("name", "files"),
    [("text", ["sample.txt"]), ("table", ["prediction.png"]), ("series", ["predictions.png", "confusion_matrix.png"]),
     ("words", ["predictions.png"]), ("waves", ["samples.png", "sample_0.wav"]), ("voices", ["separation.png", "s1_found.wav"]),
     ("reviews", ["confusion_matrix.png"])],
)  # fmt: skip
def test_the_report_shows_what_was_made(runs, name, files):
    folder = runs.folder / name / "report"
    written = (folder / "report.md").read_text()
    for file in [*files, "learning_curves.png"]:
        assert file in written or file.endswith(".txt")
        if file.endswith(".png"):
            with Image.open(folder / file) as image:
                assert np.asarray(image.convert("L")).std() > 5
    if name == "text":
        sample = (folder / "sample.txt").read_text()
        assert len(sample) == 12 + 20 + 1
        assert sample[-21:-1].splitlines()[0] in written
    if name == "table":
        rows = np.loadtxt(runs.folder / "table.csv", delimiter=",", skiprows=1, usecols=(1, 2))
        changes = np.diff(rows[-80:], axis=0) / rows[:280].std(0)
        assert f"has a mean squared error of {np.square(changes).mean():.4f}." in written
    if name == "waves":
        with wave.open(str(folder / "sample_0.wav")) as sound:
            assert (sound.getframerate(), sound.getnframes()) == (RATE, 200 + 20)


def test_a_text_is_gone_on_with_as_the_whole_network_would(runs):
    """Greedily, every symbol the likeliest after all that came before."""
    trained = runs.trained["text"]
    (line,) = predict(trained, ["the r"], options(runs.folder, sampling={"temperature": 0.0}))
    assert (line[:5], len(line)) == ("the r", 12)
    codes = text.encode(line, trained.symbols, "characters")
    logits = trained.setup.steps.model.apply(trained.variables, jnp.asarray(codes)[None], train=False)
    assert np.asarray(logits)[0, 4:-1].argmax(-1).tolist() == codes[5:].tolist()
    again, other = (list(predict(trained, ["the r", "in"], options(runs.folder, seed=seed))) for seed in (1, 2))
    assert again == list(predict(trained, ["the r", "in"], options(runs.folder, seed=1)))
    assert again != other


def test_a_stream_of_lines_remembers_what_came_before(runs):
    trained = runs.trained["text"]
    lines = ["the rain\n", "in spain\n"]
    pieces = answers(trained, "".join(lines), options(runs.folder, sampling={"temperature": 0.0}, steps=9))
    assert all(piece.endswith("\n") and len(piece) <= 10 for piece in pieces)
    seen = ""
    for line, piece in zip(lines, pieces):
        seen += line
        (expected,) = predict(trained, [seen], options(runs.folder, sampling={"temperature": 0.0}, steps=9))
        expected = expected[len(seen) :]
        expected = expected[: expected.index("\n") + 1] if "\n" in expected else expected + "\n"
        assert piece == expected
        seen += piece if len(piece) <= 9 else piece[:-1]


def test_a_table_is_forecast_row_by_row(runs):
    trained, path = runs.trained["table"], runs.folder / "table.csv"
    head, *rows = predict(trained, [str(path)], options(runs.folder, steps=3))
    assert head == "warm,wet"
    _, values = tables.read_table(path)
    mean, std = np.array(trained.facts["mean"]), np.array(trained.facts["std"])
    seen = (values - mean) / std
    for row in rows:
        y = trained.setup.steps.model.apply(trained.variables, jnp.asarray(seen, jnp.float32)[None], train=False)
        seen = np.concatenate([seen, np.asarray(y)[0, -1:]])
        np.testing.assert_allclose([float(cell) for cell in row.split(",")], seen[-1] * std + mean, rtol=1e-3, atol=1e-3)
    streamed = answers(trained, "".join(path.read_text().splitlines(keepends=True)[:40]), options(runs.folder))
    assert (answers(trained, "", options(runs.folder)), streamed[0], len(streamed)) == (["warm,wet\n"], "warm,wet\n", 40)
    written = ["11,90\n", "12,80\n"]
    assert answers(
        trained, "\ufeff" + "\n".join(["day,warm,wet\n", *(f"2021-1-1,{one}" for one in written), ""]), options(runs.folder)
    ) == (answers(trained, "".join(written), options(runs.folder)))
    whole = trained.setup.steps.model.apply(trained.variables, jnp.asarray((values[:39] - mean) / std, jnp.float32)[None], train=False)
    expected = np.asarray(whole)[0] * std + mean
    np.testing.assert_allclose([[float(cell) for cell in line.split(",")] for line in streamed[1:]], expected, rtol=1e-3, atol=1e-3)
    both = list(predict(trained, [str(path), str(path)], options(runs.folder, steps=1)))
    assert (len(both), both[0]) == (6, f"# {path}")


def test_forecast_feeds_back_what_it_gives():
    model: Any = dilax.models.create("tcn", out_features=2, kernel_size=3, features=(4, 4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 2)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    variables = jax.tree.map(lambda leaf: leaf * 20, variables)
    seen = x
    for _ in range(4):
        seen = jnp.concatenate([seen, model.apply(variables, seen, train=False)[:, -1:]], axis=1)
    np.testing.assert_allclose(dilax.forecast(model, variables, x, 4), seen[:, 9:], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"^forecast: x is float32 of shape \(3, 0, 2\); give floats"):
        dilax.forecast(model, variables, x[:, :0], 4)
    wide = dilax.models.create("tcn", out_features=3, kernel_size=3, features=(4, 4))
    with pytest.raises(UserError, match=r"^forecast: the model maps \(3, 9, 2\) to \(3, 9, 3\)"):
        dilax.forecast(wide, wide.init(jax.random.key(0), x, train=False), x, 4)


def test_series_and_sounds_are_classified(runs):
    path = runs.folder / "toy_TEST.ts"
    lines = [line.split("\t") for line in predict(runs.trained["series"], [str(path)], options(runs.folder))]
    assert [name for name, _, _ in lines[:2]] == [f"{path}:1", f"{path}:2"]
    right = [found == label for (_, found, _), label in zip(lines, series.read_ts(path)[1])]
    assert np.mean(right) == pytest.approx(run.read_status(runs.folder / "series")["metrics"]["test/accuracy"])
    files = [runs.folder / "sounds" / label / "3.wav" for label in ("low", "high")]
    found = [line.split("\t") for line in predict(runs.trained["words"], list(map(str, files)), options(runs.folder))]
    assert [row[1] for row in found] == ["low", "high"]


def test_a_sound_is_gone_on_with_in_a_file_of_its_own(runs, tmp_path):
    path = runs.folder / "sounds" / "low" / "0.wav"
    (line,) = predict(runs.trained["waves"], [str(path)], options(tmp_path / "out", steps=30))
    assert line == f"{path}\t{tmp_path / 'out' / '0_continued.wav'}\t{1630 / RATE:.3f} s"
    before, after = sounds_.read_sound(path)[0], sounds_.read_sound(tmp_path / "out" / "0_continued.wav")[0]
    np.testing.assert_allclose(after[:1600], before, atol=1e-4)
    assert len(after) == 1630
    with pytest.raises(UserError, match=r"0_continued\.wav is there already, and would be overwritten; give another folder with --out"):
        list(predict(runs.trained["waves"], [str(path)], options(tmp_path / "out")))


def test_a_mixture_is_taken_apart(runs, tmp_path):
    trained, path = runs.trained["voices"], runs.folder / "voices_data" / "mix" / "3.wav"
    (line,) = predict(trained, [str(path)], options(tmp_path / "out"))
    files = [tmp_path / "out" / f"3_{name}.wav" for name in ("s1", "s2")]
    assert line == "\t".join(map(str, [path, *files]))
    found = [sounds_.read_sound(file)[0] for file in files]
    truth = [sounds_.read_sound(runs.folder / "voices_data" / name / "3.wav")[0] for name in ("s1", "s2")]
    # Of the size of the sources, though the loss does not see the size; in some order.
    errors = [[np.square(a - b).mean() / np.square(b).mean() for b in truth] for a in found]
    assert min(errors[0][0] + errors[1][1], errors[0][1] + errors[1][0]) < 0.2
    np.testing.assert_allclose(np.sum(found, axis=0), sounds_.read_sound(path)[0], atol=0.2)


def test_texts_are_classified_by_files_and_by_lines(runs, tmp_path):
    files = []
    for name, words in {"a": "fine rain", "b": "the poor plain", "c": "in spain " * 9 + "fine"}.items():
        files.append(str(tmp_path / f"{name}.txt"))
        (tmp_path / f"{name}.txt").write_text(words)
    rows = [line.split("\t") for line in predict(runs.trained["reviews"], files, options(tmp_path))]
    assert [row[:2] for row in rows[:2]] == [[files[0], "good"], [files[1], "bad"]]
    assert len(rows) == 3
    lines = answers(runs.trained["reviews"], "fine rain\nthe poor plain\n", options(tmp_path))
    assert [piece.split("\t") for piece in lines] == [["1", "good", rows[0][2] + "\n"], ["2", "bad", rows[1][2] + "\n"]]


@pytest.fixture(scope="module")
def mistakes(runs):
    folder = runs.folder / "wrong"
    folder.mkdir()
    sounds_.write_wav(folder / "fast.wav", np.zeros(900, np.float32), 16000)
    sounds_.write_wav(folder / "long.wav", np.zeros(9000, np.float32), RATE)
    with wave.open(str(folder / "stereo.wav"), "wb") as sound:
        sound.setparams((2, 2, RATE, 4, "NONE", ""))
        sound.writeframes(bytes(16))
    (folder / "one.csv").write_text("warm\n1\n2\n")
    (folder / "turned.csv").write_text("wet,warm\n1,2\n3,4\n")
    (folder / "odd.txt").write_text("thé"[1:], encoding="utf-8")
    (folder / "nan.csv").write_text("warm,wet\n1,2\n1,nan\n")
    (folder / "long.ts").write_text("@classLabel true up down\n@data\n" + ",".join("1" * 40) + ":up\n")
    return folder


CASES = {
    "an empty prompt": ("text", [""], "the prompt is empty; give at least one character to begin with."),
    "a character outside the vocabulary": ("text", ["thé"], "character '\\xe9' at position 2 is not in the vocabulary of 16 characters, "),
    "another sample rate": ("words", ["fast.wav"], "fast.wav has 16000 samples a second, and the run was trained on 8000; resample it."),
    "stereo": ("waves", ["stereo.wav"], "stereo.wav has 2 channels; mix it down to one channel."),
    "longer than the padded size": ("words", ["long.wav"], "long.wav has 110 steps, and the run takes 40; cut it, or train with a longer"),
    "a series that is too long": ("series", ["long.ts"], "long.ts:1 has 40 steps, and the run takes 16; cut it, or train with a longer"),
    "other columns": ("table", ["one.csv"], "one.csv has the columns warm, and the run was trained on warm, wet."),
    "columns in another order": ("table", ["turned.csv"], "turned.csv has the columns wet, warm, and the run was trained on warm, wet."),
    "NaN in a series": ("table", ["nan.csv"], 'nan.csv, line 3: the cell of "wet" is missing ("nan"); fill it, or leave the series'),
    "a mixture of another rate": (
        "voices",
        ["fast.wav"],
        "fast.wav has 16000 samples a second, and the run was trained on 8000; resample it.",
    ),
    "a character that no text had": ("reviews", ["odd.txt"], "character '\\xe9' at position 1 is not in the vocabulary of "),
    "no such file": ("words", ["gone.wav"], "gone.wav"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_get_one_line(runs, mistakes, case):
    name, inputs, words = CASES[case]
    given = [str(mistakes / one) if "." in one else one for one in inputs]
    with pytest.raises(UserError) as caught:
        list(predict(runs.trained[name], given, options(mistakes / "out")))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (mistakes / "out").exists()


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
        ("reviews", "\n", "the text is empty; give at least one character."),
    ],
)
def test_mistakes_in_a_stream_get_one_line(runs, name, lines, words):
    with pytest.raises(UserError) as caught:
        answers(runs.trained[name], lines, options(runs.folder))
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_sound_is_told_from_the_command_line(runs, root):
    path = runs.folder / "sounds" / "low" / "3.wav"
    command = [sys.executable, "-m", "train.predict", "--workdir", str(runs.folder / "words"), "--stream"]
    done = subprocess.run(command, input=path.read_bytes(), capture_output=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, b"")
    (whole,) = predict(runs.trained["words"], [str(path)], options(runs.folder))
    (_, found, share), (_, expected, other) = done.stdout.decode().splitlines()[-1].split("\t"), whole.split("\t")
    assert found == expected
    assert float(share) == pytest.approx(float(other), abs=2e-4)


def printed(runs, monkeypatch, capsys, *words: str) -> tuple[str, str, int | str | None]:
    """Standard output, standard error and exit code of train.predict on the run of a text."""
    monkeypatch.setattr(command, "load_trained", lambda workdir: runs.trained["text"])
    monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(runs.folder / "text"), *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(command.main)
    return *capsys.readouterr(), ended.value.code


def test_a_draw_among_the_likeliest_alone_is_greedy(runs, monkeypatch, capsys):
    lines = {
        word: printed(runs, monkeypatch, capsys, "the r", "--steps=20", word)
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
def test_options_out_of_bounds_get_one_line(runs, monkeypatch, capsys, word, rule):
    assert printed(runs, monkeypatch, capsys, "the r", word) == ("", f"error: {word} must be {rule}.\n", 2)
