"""Prediction by a run on sequences, of files: texts and sounds gone on with, tables forecast, sounds separated, sequences classified."""

import csv
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dilax
from dilax.errors import UserError
from dilax.models.wavenet import mu_law_encode
from train.data.open_sequences import log_mel_frames
from train.data.readers import series, text
from train.data.readers import sound as sounds_
from train.data.readers.tables import read_table
from train.data.windows import padded
from train.run import Trained
from train.sequence_report import draw, probabilities, separate, to_sound


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says of a prediction.

    Attributes:
        steps: Symbols, samples or rows to add.
        sampling: Options of `dilax.sample`: temperature, top_k and top_p, or some of them.
        seed: Of the draw.
        folder: Where sounds are written.
        replace: Whether those that are there already are replaced.
    """

    steps: int
    sampling: dict[str, Any]
    seed: int
    folder: pathlib.Path
    replace: bool


def predict(trained: Trained, inputs: list[str], options: Options) -> Iterator[str]:
    """Yield the lines to print for each input: a prompt, or a file, as the run's task and data say.

    Raises:
        UserError: if one does not fit the run; then nothing has been printed of any.
    """
    kind = trained.config.task, trained.config.data.name.partition(":")[0]
    jobs: dict[tuple[str, str], Callable[..., Iterator[str]]] = {
        ("sequence_classification", "ucr"): _series,
        ("sequence_classification", "wav"): _spoken,
        ("sequence_classification", "text"): _read_texts,
        ("sequence_prediction", "csv"): _tables,
        ("waveform", "wav"): _sounds,
        ("separation", "mixtures"): _mixtures,
    }
    job = _texts if trained.config.task == "language_model" else jobs.get(kind)
    if job is None:
        raise UserError(f"there is nothing to predict from files for a run on {kind[1]!r}; use train.evaluate.")
    return job(trained, inputs, options)


def _texts(trained: Trained, prompts: list[str], options: Options) -> Iterator[str]:
    """Each prompt, and what the run writes after it."""
    codes = [encoded(trained, prompt) for prompt in prompts]
    for prompt, one in zip(prompts, codes):
        drawn = _drawn(trained, one[None], options)
        yield prompt + text.decode(drawn[0], trained.symbols, trained.config.sequence.units)


def encoded(trained: Trained, prompt: str) -> np.ndarray:
    """Return the codes of a prompt."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one character to begin with.")
    return text.encode(prompt, trained.symbols, trained.config.sequence.units)


def _drawn(trained: Trained, prompt: np.ndarray, options: Options) -> np.ndarray:
    return draw(trained.setup, trained.variables, prompt, options.steps, options.sampling, seed=options.seed)


def _sounds(trained: Trained, paths: list[str], options: Options) -> Iterator[str]:
    """Each sound gone on with, in a file of its own: path, path of what was written, seconds."""
    sounds = [_read_sound(trained, path) for path in paths]
    targets = [target for (target,) in _targets(paths, ("continued",), options)]
    rate, levels = trained.facts["sample_rate"], trained.config.sequence.levels
    for path, sound, target in zip(paths, sounds, targets):
        prompt = np.asarray(mu_law_encode(jnp.asarray(sound), levels)) if trained.symbols else sound[:, None]
        drawn = to_sound(trained.setup, _drawn(trained, prompt[None], options))[0]
        sounds_.write_wav(target, np.concatenate([sound, drawn]), rate)
        yield f"{path}\t{target}\t{(len(sound) + len(drawn)) / rate:.3f} s"


def _mixtures(trained: Trained, paths: list[str], options: Options) -> Iterator[str]:
    """The sources of each mixture, in files of their own: path, paths of what was written."""
    sounds = [_read_sound(trained, path) for path in paths]
    targets = _targets(paths, trained.class_names, options)
    for path, sound, files in zip(paths, sounds, targets):
        for file, source in zip(files, separate(trained.setup, trained.variables, sound).T):
            sounds_.write_wav(file, source, trained.facts["sample_rate"])
        yield "\t".join([path, *map(str, files)])


def _targets(paths: list[str], words: tuple[str, ...], options: Options) -> list[list[pathlib.Path]]:
    """The files NAME_WORD.wav of each input NAME.wav, none of which is there, in a folder that is."""
    targets = [[options.folder / f"{pathlib.Path(path).stem}_{word}.wav" for word in words] for path in paths]
    taken, given = set[pathlib.Path](), {pathlib.Path(path).resolve() for path in paths}
    for target in itertools.chain(*targets):
        if target in taken or (target.exists() and not options.replace) or target.resolve() in given:
            raise UserError(f"{target} is there already, and would be overwritten; give another folder with --out.")
        taken.add(target)
    options.folder.mkdir(parents=True, exist_ok=True)
    return targets


def _read_sound(trained: Trained, path: str) -> np.ndarray:
    sound, rate = sounds_.read_sound(pathlib.Path(path))
    check_rate(trained, path, rate)
    return sound


def check_rate(trained: Trained, name: str, rate: int) -> None:
    """Refuse a sound of another sample rate than the run's."""
    if rate != trained.facts["sample_rate"]:
        raise UserError(f"{name} has {rate} samples a second, and the run was trained on {trained.facts['sample_rate']}; resample it.")


def _spoken(trained: Trained, paths: list[str], _: Options) -> Iterator[str]:
    frames = log_mel_frames([_read_sound(trained, path) for path in paths], trained.facts["sample_rate"], trained.config.sequence.bands)
    return classified(trained, paths, frames)


def _series(trained: Trained, paths: list[str], _: Options) -> Iterator[str]:
    """The series of .ts files, each named FILE:NUMBER; their labels, if they have some, are not read."""
    found = [(f"{path}:{i + 1}", one) for path in paths for i, one in enumerate(series.read_ts(pathlib.Path(path))[0])]
    return classified(trained, [name for name, _ in found], [one for _, one in found])


def _read_texts(trained: Trained, paths: list[str], _: Options) -> Iterator[str]:
    """Text files; of a longer one what training would read."""
    texts = [text.read_text(pathlib.Path(path)) for path in paths]
    return classified(trained, paths, [codes_of(trained, one) for one in texts])


def codes_of(trained: Trained, one: str) -> np.ndarray:
    """Return the codes of a text, of a longer one what training would read."""
    if not one:
        raise UserError("the text is empty; give at least one character.")
    return text.encode(one, trained.symbols, trained.config.sequence.units)[: trained.input_shape[0]]


def classified(trained: Trained, names: list[str], sequences: list[np.ndarray]) -> Iterator[str]:
    """Yield name, class and probability of each."""
    length, *channels = trained.input_shape
    for name, one in zip(names, sequences):
        if one.shape[1:] != tuple(channels):
            raise UserError(f"{name} has {one.shape[1]} channels, and the run was trained on {channels[0]}.")
        if len(one) > length:
            raise UserError(
                f"{name} has {len(one)} steps, and the run takes {length}; cut it, or train with a longer config.sequence.length."
            )
    scale = Scale(trained)
    x, lengths = padded(sequences if trained.symbols else [scale.to(one) for one in sequences], length)
    for name, values, count in zip(names, x, lengths):
        batch = {"input": values[None], "length": count[None]}
        found = probabilities(trained.setup, trained.variables, batch)[0]
        yield f"{name}\t{trained.class_names[int(found.argmax())]}\t{found.max():.4f}"


def _tables(trained: Trained, paths: list[str], options: Options) -> Iterator[str]:
    """The rows that follow each table, as CSV with the names of the columns."""
    tables = [read_table(pathlib.Path(path)) for path in paths]
    for path, (names, _) in zip(paths, tables):
        check_columns(trained, path, names)
    scale = Scale(trained)
    run: Any = jax.jit(lambda variables, x: dilax.forecast(trained.setup.steps.model, variables, x, options.steps))
    for path, (_, values) in zip(paths, tables):
        if len(paths) > 1:
            yield f"# {path}"
        yield row(trained.class_names)
        for after in scale.back(np.asarray(run(trained.variables, jnp.asarray(scale.to(values))[None]))[0]):
            yield row([f"{value:.6g}" for value in after])


def check_columns(trained: Trained, source: str, names: Sequence[str]) -> None:
    """Refuse columns other than those of the run, but for tables without names."""
    unnamed = any(one[0].startswith("column ") for one in (names, trained.class_names))
    if len(names) != len(trained.class_names) or (not unnamed and tuple(names) != tuple(trained.class_names)):
        raise UserError(f"{source} has the columns {', '.join(names)}, and the run was trained on {', '.join(trained.class_names)}.")


@dataclasses.dataclass(frozen=True)
class Scale:
    """To the numbers that a run was trained on, and back."""

    trained: Trained

    def to(self, values: np.ndarray) -> np.ndarray:
        """Map values of the data to what the model takes."""
        return ((values - np.asarray(self.trained.facts["mean"])) / np.asarray(self.trained.facts["std"])).astype(np.float32)

    def back(self, values: np.ndarray) -> np.ndarray:
        """Map what the model gives to values of the data."""
        return values * np.asarray(self.trained.facts["std"]) + np.asarray(self.trained.facts["mean"])


def row(cells: Iterable[str]) -> str:
    """Return a row of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
