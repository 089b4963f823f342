"""Dataset name -> splits of sequences, for the tasks of `train.sequences`."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dilax.audio import log_mel
from dilax.errors import UserError, did_you_mean
from dilax.models.wavenet import mu_law_encode
from train.data.readers import piano, series, tables, text
from train.data.readers import sound as sounds_
from train.data.readers.files import labelled_files
from train.data.readers.made_up import ADDING_EXAMPLES, COPY_EXAMPLES, SYMBOLS, TEST_EXAMPLES, adding, copy_memory
from train.data.readers.mixtures import pieces, read_mixtures
from train.data.source import TEST_SPLIT, VALIDATION, Splits, held_out, stratified
from train.data.windows import Table, padded, windows

LABELLED = ("ucr", "wav", "text")  # of sequence_classification; all other names are sets of images, to be read as sequences of pixels
_TRAIN, _TEST = 1, 2  # of the keys of what is made up
Labelled = tuple[list[np.ndarray], list[str]]  # sequences and their labels
_WORDS = {"train": "training", "validation": "validation", "test": "test"}


def load_sequences(config: ConfigDict) -> Splits:
    """Open the sequences that a whole config describes.

    Raises:
        UserError: if its data is missing, or does not fit it.
    """
    given: Any = config
    known = OPENERS[given.task]
    name = given.data.name.partition(":")[0]
    if name not in known:
        raise UserError(
            f"config.data.name={given.data.name!r} is no data for config.task={given.task!r}; use one of {tuple(known)}."
            f"{did_you_mean(name, known)}"
        )
    for key in ("classes", "per_class", "image_size"):
        if given.data[key]:
            raise UserError(f"config.data.{key}={given.data[key]!r} has no meaning for data.name={given.data.name!r}; leave it out.")
    return known[name](given)


def of_pixels(splits: Splits) -> Splits:
    """Return splits of images as those of sequences of their pixels; `train.sequences.pixels` makes them on the device."""
    height, width, channels = splits.input_shape
    return dataclasses.replace(splits, input_shape=(height * width, channels))


def _adding(config: Any) -> Splits:
    return _made_up(config, adding, ADDING_EXAMPLES, ("sum",), ())


def _copy_memory(config: Any) -> Splits:
    symbols = tuple(map(str, range(SYMBOLS)))
    return _made_up(config, copy_memory, COPY_EXAMPLES, symbols, symbols)


def _made_up(config: Any, make: Callable[..., Table], examples: int, outputs: tuple[str, ...], symbols: tuple[str, ...]) -> Splits:
    """Splits of their own draws: the training split by config.seed, the others the same for every run."""
    count, length = config.sequence.examples or examples, config.sequence.length
    if not length:
        raise UserError(f"config.sequence.length=0 says no length for data.name={config.data.name!r}; set it, such as 200.")
    train = make(count, length, _TRAIN, config.seed)
    validation = make(TEST_EXAMPLES, length, VALIDATION) if config.data.validation else None
    test = make(TEST_EXAMPLES, length, _TEST)
    return Splits(config.data.name, outputs, train.arrays["input"].shape[1:], train, validation, test, symbols)


def _ucr(config: Any) -> Splits:
    """Series of a set of the UCR archive, data.name="ucr:GunPoint", standardised by the mean and deviation of the training split."""
    name = config.data.name.partition(":")[2]
    files = series.ucr_files(name, config.data.dir)
    train, test = map(series.read_ts, files)
    return _standardised(config, train, test, {})


def _standardised(config: Any, train: Labelled, test: Labelled, facts: dict[str, Any]) -> Splits:
    """Splits of series (time, channels), each channel standardised by its mean and deviation in the training split."""
    channels = {one.shape[1] for one in [*train[0], *test[0]]}
    if len(channels) > 1:
        raise UserError(
            f"data.name={config.data.name!r}: series have {' and '.join(map(str, sorted(channels)))} channels; give one number."
        )
    together = np.concatenate(train[0])
    mean, std = _moments(together)
    train, test = (([((one - mean) / std).astype(np.float32) for one in split], labels) for split, labels in (train, test))
    return _classes(config, train, test, facts={**facts, "mean": mean.tolist(), "std": std.tolist()})


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and deviation of each column, by sums that stay exact over many rows."""
    return values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64) + 1e-8


def _classes(config: Any, train: Labelled, test: Labelled, symbols: tuple[str, ...] = (), facts: dict[str, Any] | None = None) -> Splits:
    """Splits of sequences with their classes; a share of each class of the training split is held out."""
    names = tuple(sorted({*train[1], *test[1]}))
    length = config.sequence.length or max(map(len, [*train[0], *test[0]]))

    def table(split: Labelled) -> Table:
        x, lengths = padded(split[0], length)
        return Table({"input": x, "length": lengths, "label": np.array([names.index(label) for label in split[1]], np.int32)})

    learned, tested = table(train), table(test)
    held = learned.split(held_out(learned.arrays["label"], config.data.validation, config.seed))
    return Splits(config.data.name, names, learned.arrays["input"].shape[1:], *held, tested, symbols, facts or {})


def _files(config: Any, suffix: str) -> tuple[list[Any], list[Any]]:
    """(file, label) of the training and the test split: of train/ and test/ where there are both, else every fifth file is for the test."""
    folder = pathlib.Path(config.data.dir)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return labelled_files(folder / "train", suffix), labelled_files(folder / "test", suffix)
    files = labelled_files(folder, suffix)
    labels = np.array([label for _, label in files])
    chosen = stratified(np.unique(labels, return_inverse=True)[1], round(len(files) / 5), TEST_SPLIT)
    train, test = ([file for file, here in zip(files, chosen == kept) if here] for kept in (False, True))
    return train, test


def _spoken(config: Any) -> Splits:
    """Sounds in folders of their labels, as log-mel frames."""
    train, test = _files(config, ".wav")
    sounds, rate = sounds_.read_sounds([path for path, _ in [*train, *test]])
    frames, cut = log_mel_frames(sounds, rate, config.sequence.bands), len(train)
    parts = (frames[:cut], [label for _, label in train]), (frames[cut:], [label for _, label in test])
    return _standardised(config, *parts, {"sample_rate": rate})


def mel_frame(rate: int) -> tuple[int, int]:
    """Return the samples in a log-mel frame, 32 ms, and from one to the next, 10 ms."""
    return round(0.032 * rate), round(0.01 * rate)


def log_mel_frames(sounds: list[np.ndarray], rate: int, bands: int) -> list[np.ndarray]:
    """Return the log-mel energies (frames, bands) of each sound (samples,), as `mel_frame` cuts them."""
    window, hop = mel_frame(rate)
    # Silence behind a sound does not change its own frames, so that one program serves for all.
    length = max(window, *map(len, sounds))
    run = jax.jit(lambda sound: log_mel(sound[None], rate, window=window, hop=hop, bands=bands)[0])
    counts = [1 + max(0, len(sound) - window) // hop for sound in sounds]
    return [np.asarray(run(np.pad(sound, (0, length - len(sound)))))[:count] for sound, count in zip(sounds, counts)]


def _labelled_texts(config: Any) -> Splits:
    """Texts in folders of their labels; of a longer one the first config.sequence.length symbols."""
    units, most = config.sequence.units, config.sequence.length or None
    train, test = (([text.read_text(path) for path, _ in split], [label for _, label in split]) for split in _files(config, ".txt"))
    symbols = text.symbols_of("".join(train[0]), units)
    train, test = (([text.encode(one, symbols, units)[:most] for one in split], labels) for split, labels in (train, test))
    return _classes(config, train, test, symbols)


def _mixtures(config: Any) -> Splits:
    """Mixtures of sounds in pieces, of which every step is to give the sources; whole files are held out."""
    folder = pathlib.Path(config.data.dir)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        read = {name: read_mixtures(folder / name) for name in _WORDS if name != "validation" or (folder / name).is_dir()}
    else:
        read = {"train": read_mixtures(folder)}
    names, rate = read["train"].names, read["train"].rate
    for name, part in read.items():
        if (part.names, part.rate) != (names, rate):
            raise UserError(f"{folder / name} has other sources or another sample rate than {folder / 'train'}; give the same.")
    sounds = {name: part.sounds for name, part in read.items()}
    if "test" not in sounds:
        sounds["train"], sounds["test"] = _shared_out(sounds["train"], config.sequence.test, TEST_SPLIT, "sequence.test")
    if "validation" not in sounds and config.data.validation:
        sounds["train"], sounds["validation"] = _shared_out(sounds["train"], config.data.validation, config.seed, "data.validation")
    length = config.sequence.length or max(len(sound) for part in sounds.values() for sound in part)

    def table(part: list[np.ndarray]) -> Table:
        x, lengths = padded(pieces(part, length), length)
        return Table({"input": x[..., :1], "label": x[..., 1:], "length": lengths})

    tables = {name: table(part) for name, part in sounds.items()}
    validation = tables["validation"] if config.data.validation else None
    return Splits(config.data.name, names, (length, 1), tables["train"], validation, tables["test"], facts={"sample_rate": rate})


def _shared_out(sounds: list[np.ndarray], share: float, seed: int, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    chosen = held_out(np.zeros(len(sounds), np.int32), share, seed, name)
    assert chosen is not None
    return [one for one, held in zip(sounds, chosen) if not held], [one for one, held in zip(sounds, chosen) if held]


def _piano(config: Any) -> Splits:
    """Rolls of keys, each step of which is to give the keys of the next."""
    rolls = piano.read_piano_rolls(pathlib.Path(config.data.dir))
    length = config.sequence.length or max(len(roll) for split in rolls.values() for roll in split) - 1

    def table(split: list[np.ndarray], word: str) -> Table:
        long_enough = [roll for roll in split if len(roll) > 1]
        if not long_enough:
            raise UserError(f"{config.data.dir}: the {word} split has no sequence of 2 steps or more, which a prediction needs.")
        x, lengths = padded([roll[:-1].astype(np.float32) for roll in long_enough], length)
        y, _ = padded([roll[1:].astype(np.float32) for roll in long_enough], length)
        return Table({"input": x, "length": lengths, "label": y, "counted": np.arange(length)[None] < lengths[:, None]})

    tables = {name: table(rolls[name], word) for name, word in _WORDS.items()}
    keys = tables["train"].arrays["input"].shape[-1]
    validation = tables["validation"] if config.data.validation else None
    names = tuple(f"key {i + 1}" for i in range(keys))
    return Splits(config.data.name, names, (length, keys), tables["train"], validation, tables["test"])


def _text(config: Any) -> Splits:
    """A text, or a folder with train.txt, validation.txt (or valid.txt) and test.txt."""
    parts, units = _text_parts(config), config.sequence.units
    symbols = text.symbols_of(parts["train"], units)
    codes = {name: [text.encode(part, symbols, units)] for name, part in parts.items()}
    return _cut(config, codes, symbols, symbols, {})


def _text_parts(config: Any) -> dict[str, str]:
    if config.data.name in text.PACKAGES:
        if config.data.dir:
            raise UserError(
                f"config.data.dir={config.data.dir!r} is not read with config.data.name={config.data.name!r}, the text of a package; "
                'set config.data.name to "text", or leave the folder out.'
            )
        whole = text.package_text(config.data.name)
    else:
        path = pathlib.Path(config.data.dir)
        if not config.data.dir:
            raise UserError('config.data.dir="" names no text; set it to a file, or to a folder with train.txt and test.txt.')
        if path.is_dir():
            valid = "valid.txt" if (path / "valid.txt").exists() else "validation.txt"
            files = {"train": "train.txt", "test": "test.txt", **({"validation": valid} if config.data.validation else {})}
            return {name: text.read_text(path / file) for name, file in files.items()}
        whole = text.read_text(path)
    return _in_three(whole, config)


def _in_three(whole: Any, config: Any) -> dict[str, Any]:
    """Cut a text or a table along time: the last share is the test split, that before it the validation split."""
    count = len(whole)
    tested, held = round(count * config.sequence.test), round(count * config.data.validation)
    train = count - tested - held
    if train < 1:
        raise UserError(
            f"config.sequence.test={config.sequence.test} and config.data.validation={config.data.validation} leave nothing to learn from; "
            "make them less."
        )
    parts = {"train": whole[:train], "test": whole[count - tested :]}
    return {**parts, "validation": whole[train : train + held]} if held else parts


def _csv(config: Any) -> Splits:
    """A table of numbers by time, standardised by the training split, each row of which is to give the next."""
    names, values = tables.read_table(pathlib.Path(config.data.dir))
    parts = _in_three(values, config)
    mean, std = _moments(parts["train"])
    scaled = {name: [((part - mean) / std).astype(np.float32)] for name, part in parts.items()}
    return _cut(config, scaled, names, (), {"mean": mean.tolist(), "std": std.tolist()})


def _wave(config: Any) -> Splits:
    """Sounds, each sample of which is to be told from those before: codes after mu-law, or floats for a mixture."""
    folder = pathlib.Path(config.data.dir)
    paths = sorted(folder.rglob("*.wav"))
    if not paths:
        raise UserError(f"config.data.dir={config.data.dir!r} holds no .wav files; give the folder of them.")
    sounds, rate = sounds_.read_sounds(paths)
    mixture, levels = config.model.get("outputs") == "mixture", config.sequence.levels
    values = [sound[:, None] if mixture else np.asarray(mu_law_encode(jnp.asarray(sound), levels)) for sound in sounds]
    # Whole files, spread over the folder: of one speaker or piece there is something in every split.
    held = max(1, round(len(values) * config.data.validation)) if config.data.validation else 0
    tested = max(1, round(len(values) * config.sequence.test))
    if len(values) < 1 + held + tested:
        raise UserError(f"config.data.dir={config.data.dir!r} holds {len(values)} .wav files, too few to split; cut them into more.")
    order = np.linspace(0, len(values) - 1, held + tested).round().astype(int).tolist()
    test = order[:: max(1, len(order) // tested)][:tested]
    validation = [i for i in order if i not in test]
    parts = {"train": [value for i, value in enumerate(values) if i not in order], "test": [values[i] for i in test]}
    parts |= {"validation": [values[i] for i in validation]} if held else {}
    symbols = () if mixture else tuple(map(str, range(levels)))
    return _cut(config, parts, symbols or ("sample",), symbols, {"sample_rate": rate})


def _cut(
    config: Any, parts: dict[str, list[np.ndarray]], outputs: tuple[str, ...], symbols: tuple[str, ...], facts: dict[str, Any]
) -> Splits:
    """Splits of windows of long sequences; those that are not learned from may be shorter than a window."""
    if not config.sequence.length:
        raise UserError(f"config.sequence.length=0 says no window for data.name={config.data.name!r}; set it, such as 256.")
    length, context, cut = config.sequence.length, config.sequence.context, {}
    for name, part in parts.items():
        train, split = name == "train", f"the {_WORDS[name]} split of {config.data.name}"
        cut[name] = windows(part, length, context, split, stride=config.sequence.stride if train else 0, short=not train)
    shape = (length, *parts["train"][0].shape[1:])
    return Splits(config.data.name, outputs, shape, cut["train"], cut.get("validation"), cut["test"], symbols, facts)


OPENERS: dict[str, dict[str, Callable[[Any], Splits]]] = {
    "sequence_classification": {"ucr": _ucr, "wav": _spoken, "text": _labelled_texts},
    "sequence_prediction": {"adding": _adding, "copy_memory": _copy_memory, "piano": _piano, "csv": _csv},
    "language_model": {"text": _text, **dict.fromkeys(text.PACKAGES, _text)},
    "waveform": {"wav": _wave},
    "separation": {"mixtures": _mixtures},
}
