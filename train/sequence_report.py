"""What the report of a run on sequences shows: series and their classes, steps and their predictions, drawn texts and sounds."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax import plots, sample
from dilax.audio import mu_law_decode
from dilax.losses import si_sdr
from train import data, sequences
from train.data.readers import sound as sounds_
from train.data.readers import text
from train.data.source import gather
from train.report import most_telling
from train.run import Setup

CHOSEN, SHOWN, SAMPLES, BEGINNING = 400, 24, 3, 120
Pictures = dict[str, tuple[str, Any]]


def contents(
    folder: pathlib.Path, made: Setup, splits: data.Splits, variables: Any, sums: Mapping[str, np.ndarray]
) -> tuple[Pictures, list[str]]:
    """Return the pictures, by heading, and further sections of the report of a run; what is drawn is written to `folder`, too.

    Args:
        folder: Of the report; it exists.
        made: The run.
        splits: Its data.
        variables: The best ones.
        sums: Those of the test split, as `train.evaluate.score` returns them.
    """
    return _CONTENTS[made.config.task](folder, made, splits, variables, sums)


def probabilities(made: Setup, variables: Any, batch: dict[str, Any]) -> np.ndarray:
    """Return the probabilities (n, classes) of the classes of a batch of sequences."""
    logits = sequences.pooled(made.outputs(variables, batch), jnp.asarray(batch["length"]), made.config.sequence.pool)
    return np.asarray(jax.nn.softmax(logits))


def _classified(
    _: pathlib.Path, made: Setup, splits: data.Splits, variables: Any, sums: Mapping[str, np.ndarray]
) -> tuple[Pictures, list[str]]:
    pictures: Pictures = {"Confusion matrix": ("confusion_matrix", plots.confusion_matrix(sums["confusion"], splits.class_names))}
    chosen = np.linspace(0, len(splits.test) - 1, min(CHOSEN, len(splits.test))).astype(int)
    batch = gather(splits.test, chosen)
    whole = sequences.of_batch(made.config, batch)
    parts = [{name: values[at : at + 50] for name, values in whole.items()} for at in range(0, len(chosen), 50)]
    found = np.concatenate([probabilities(made, variables, part) for part in parts])
    order = most_telling(batch["label"], found)[:SHOWN]
    labels, found = batch["label"][order], found[order]
    if splits.symbols:
        return pictures, [_texts(batch, order, found, splits, made)]
    if "image" in batch:
        shown = plots.prediction_grid(batch["image"][order], labels, found, splits.class_names)
    else:
        shown = plots.series_grid([batch["input"][i, : batch["length"][i]] for i in order], labels, found, splits.class_names)
    return {**pictures, "Test sequences, mistakes first": ("predictions", shown)}, []


def _texts(batch: dict[str, np.ndarray], order: np.ndarray, found: np.ndarray, splits: data.Splits, made: Setup) -> str:
    """A table of the beginnings of texts with their classes, as those told."""
    rows = []
    for place, probability in zip(order, found):
        codes = batch["input"][place, : min(BEGINNING, batch["length"][place])]
        words = " ".join(text.decode(codes, splits.symbols, made.config.sequence.units).split()).replace("|", "\\|")
        true, told = (splits.class_names[i] for i in (batch["label"][place], int(probability.argmax())))
        rows.append(f"| {words} | {true} | {told} ({probability.max():.0%}) |")
    return "\n".join(["## Test texts, mistakes first\n", "| beginning | class | predicted |", "|---|---|---|", *rows])


def _predicted(_: pathlib.Path, made: Setup, splits: data.Splits, variables: Any, __: Any) -> tuple[Pictures, list[str]]:
    batch = gather(splits.test, np.arange(min(64, len(splits.test))))
    found, counted, names = np.asarray(made.outputs(variables, batch)), batch["counted"], splits.class_names
    truth, loss = batch["label"], made.config.sequence.loss
    if loss == "categorical":
        truth, found, names = truth[..., None], found.argmax(-1)[..., None], ("code",)
    elif loss == "binary":
        found = np.asarray(jax.nn.sigmoid(found))
    # Where a sequence is scored at a step or two, those of several are shown.
    few = counted[0].sum() < 3
    places = counted if few else counted & (np.arange(len(counted)) == 0)[:, None]
    title = f"the {places.sum()} scored steps of {f'the first {len(counted)} test sequences' if few else 'the first test sequence'}"
    pictures: Pictures = {"Test steps": ("prediction", plots.step_outputs(truth[places], found[places], names, title=title))}
    return pictures, [_row_again(splits)] if made.config.data.name == "csv" else []


def _row_again(splits: data.Splits) -> str:
    """What a forecast is to beat."""
    batch = gather(splits.test, np.arange(len(splits.test)))
    changes = (batch["label"] - batch["input"])[batch["counted"]]
    return f"## For comparison\n\nTo give each row again as the next has a mean squared error of {np.square(changes).mean():.4f}."


def _written(folder: pathlib.Path, made: Setup, splits: data.Splits, variables: Any, _: Any) -> tuple[Pictures, list[str]]:
    config = made.config.sequence
    if not config.sample:
        return {}, []
    prompt = _prompts(splits, 1)
    drawn = draw(made, variables, prompt, config.sample, {"temperature": config.temperature}, seed=made.config.seed)
    before, after = (text.decode(codes[0], splits.symbols, config.units) for codes in (prompt, drawn))
    (folder / "sample.txt").write_text(f"{before}{after}\n", encoding="utf-8")
    quoted = "\n".join("    " + line for line in f"{before}⟶{after}".splitlines())
    return {}, [f"## A sample\n\nThe beginning of the test text up to ⟶, then {config.sample} symbols drawn at temperature "
                f"{config.temperature:g}:\n\n{quoted}"]  # fmt: skip


def _sounded(folder: pathlib.Path, made: Setup, splits: data.Splits, variables: Any, _: Any) -> tuple[Pictures, list[str]]:
    config, rate = made.config.sequence, splits.facts["sample_rate"]
    if not config.sample:
        return {}, []
    prompts = _prompts(splits, min(SAMPLES, len(splits.test)))
    drawn = draw(made, variables, prompts, config.sample, {"temperature": config.temperature}, seed=made.config.seed)
    sounds, names = np.concatenate([to_sound(made, prompts), to_sound(made, drawn)], axis=1), []
    for i, sound in enumerate(sounds):
        names.append(f"sample_{i}.wav")
        sounds_.write_wav(folder / names[-1], sound, rate)
    figure = plots.waveforms(sounds, rate, names)
    begins = f"The first {prompts.shape[1] / rate:.3g} s of each are of the test split, the rest is drawn."
    return {"Drawn sounds": ("samples", figure)}, [f"## Files\n\n{begins}\n\n" + "\n".join(f"- [{name}]({name})" for name in names)]


def _separated(folder: pathlib.Path, made: Setup, splits: data.Splits, variables: Any, _: Any) -> tuple[Pictures, list[str]]:
    batch, rate = gather(splits.test, np.arange(1)), splits.facts["sample_rate"]
    mixture, truth = (batch[name][0, : batch["length"][0]] for name in ("input", "label"))
    found = separate(made, variables, mixture[:, 0])
    # Beside each source the one found that is most like it.
    pairs = map(jnp.asarray, np.broadcast_arrays(found[None], truth.T[..., None]))
    nearest = np.asarray(si_sdr(*pairs)).argmax(1)
    sounds = {"mixture": mixture[:, 0]}
    for i, name in enumerate(splits.class_names):
        sounds |= {name: truth[:, i], f"{name}_found": found[:, nearest[i]]}
    for name, sound in sounds.items():
        sounds_.write_wav(folder / f"{name}.wav", np.clip(sound, -1, 1), rate)
    figure = plots.waveforms(np.stack(list(sounds.values())), rate, list(sounds))
    files = "\n".join(f"- [{name}.wav]({name}.wav)" for name in sounds)
    return {"The first test mixture": ("separation", figure)}, [f"## Files\n\n{files}"]


def separate(made: Setup, variables: Any, mixture: np.ndarray) -> np.ndarray:
    """Return the sources (time, sources) of one mixture (time,), each scaled so that together they come closest to it, within -1..1."""
    batch = {"input": mixture[None, :, None], "length": np.array([len(mixture)])}
    found = np.asarray(made.outputs(variables, batch)[0], np.float32)
    scaled = found * np.linalg.lstsq(found, mixture, rcond=None)[0]
    return scaled / max(1.0, float(np.abs(scaled).max()))


def draw(made: Setup, variables: Any, prompt: np.ndarray, steps: int, sampling: dict[str, Any], *, seed: int) -> np.ndarray:
    """Go on with prompts (n, time) or (n, time, 1) for `steps` samples, as `dilax.sample` with those options."""
    run: Callable[..., Any] = jax.jit(lambda variables, key, prompt: sample(made.steps.model, variables, key, prompt, steps, **sampling))
    return np.asarray(run(variables, jax.random.key(seed), jnp.asarray(prompt)))


def to_sound(made: Setup, values: np.ndarray) -> np.ndarray:
    """Map codes (n, time), or samples (n, time, 1), to waveforms (n, time) in -1..1."""
    return np.asarray(mu_law_decode(jnp.asarray(values), levels=made.config.sequence.levels)) if values.ndim == 2 else values[..., 0]


def _prompts(splits: data.Splits, count: int) -> np.ndarray:
    """The first half of up to `count` of the longest windows of the test split."""
    batch = gather(splits.test, np.linspace(0, len(splits.test) - 1, min(64, len(splits.test))).astype(int))
    longest = batch["length"].max()
    return batch["input"][batch["length"] == longest][:count, : max(1, int(longest) // 2)]


_CONTENTS: dict[str, Callable[..., tuple[Pictures, list[str]]]] = {
    "sequence_classification": _classified,
    "sequence_prediction": _predicted,
    "language_model": _written,
    "waveform": _sounded,
    "separation": _separated,
}
