"""Separation of a mixture of sounds into its sources."""

import argparse
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, plots
from dilax.inference import model_arguments, valid_steps
from dilax.losses import separation_loss, si_sdr
from train.data.readers import sound
from train.data.readers.files import data_path
from train.data.readers.mixtures import pieces, read_mixtures
from train.data.source import Table, gather
from train.data.splits import TEST_SPLIT, Splits, divided, held_out, origin_of
from train.data.windows import padded
from train.keys import ON_BAD, UNLIMITED, Key, Keys, Reads
from train.tasks import streams
from train.tasks.base import Batch, Bytes, Report, Scores, Shape, Sums, Task, add_inputs, make_folder, output_files, table_lines
from train.tasks.portable import Answer, unchanged
from train.tasks.steps import TEST_KEYS, check_name


class Separation(Task):
    """Learns the sources of a mixture, in the order that fits best, by SI-SDR."""

    name = "separation"
    keys: ClassVar[Keys] = {
        **TEST_KEYS,
        "data.on_bad": ON_BAD,
        "sequence.length": Key(0, "samples of the pieces that mixtures are cut into; 0 is the longest mixture", (0, UNLIMITED)),
    }
    reads: ClassVar[Reads] = {"mixtures": ()}
    best_by = "si_sdr"
    curves = ("loss",)
    spatial = ("input", "label")

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a folder of mixtures and their sources; whole files are held out."""
        check_name(config, tuple(cls.reads))
        folder = data_path(config, "a folder with mix/, s1/, s2/ and so on")
        folders = divided(folder, validation=bool(config.data.validation))
        on_bad = config.data.on_bad
        train = read_mixtures(folders.get("train", folder), rate=like.sample_rate if like else None, on_bad=on_bad)
        others = {name: path for name, path in folders.items() if name != "train"}
        read = {"train": train, **{name: read_mixtures(path, rate=train.rate, on_bad=on_bad) for name, path in others.items()}}
        names, rate = train.names, train.rate
        for name, part in read.items():
            if part.names != names:
                here, there = (", ".join(words) for words in (part.names, names))
                raise UserError(f"{folders[name]} has the sources {here}, and the training split has {there}; give the same.")
        sounds = {name: part.sounds for name, part in read.items()}
        if "test" not in sounds:
            sounds["train"], sounds["test"] = _share_out(sounds["train"], config.sequence.test, TEST_SPLIT, "sequence.test")
        if "validation" not in sounds and config.data.validation:
            sounds["train"], sounds["validation"] = _share_out(sounds["train"], config.data.validation, config.seed, "data.validation")
        length = config.sequence.length or max(len(one) for part in sounds.values() for one in part)
        tables = {name: _table(part, length) for name, part in sounds.items()}
        spec = DataSpec(config.data.name, (length, 1), names, len(tables["train"]), sample_rate=rate)
        return Splits(spec, tables["train"], tables.get("validation"), tables["test"], origin_of(folder, folders), ("sources", "mixtures"))

    def hub_task(self) -> str:
        """Sounds from a sound."""
        return "audio-to-audio"

    def output_shapes(self) -> tuple[Shape, ...]:
        """A waveform for each source."""
        return ((self.spec.input_shape[0], len(self.spec.outputs)),)

    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Mixtures with the mask of their valid samples."""
        return model_arguments(model, batch["input"], batch["length"])

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Negative SI-SDR in dB of the best order of the sources."""
        return separation_loss(outputs, batch["label"], _valid(batch))

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """The loss, and that of the mixture itself in place of each source."""
        valid, targets = _valid(batch), batch["label"]
        mixture = jnp.broadcast_to(batch["input"], targets.shape)
        losses = {"loss": separation_loss(outputs, targets, valid), "mixture": -si_sdr(mixture, targets, valid).mean(-1)}
        return {**{name: jnp.where(batch["mask"], each, 0.0).sum() for name, each in losses.items()}, "count": batch["mask"].sum()}

    def answer(self, *, step: bool = False) -> Answer:
        """The sources, whose scale means nothing: neither the loss nor the metric sees it."""
        return unchanged("sources")

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Mean SI-SDR, by how much it exceeds that of the mixture, both in dB, and the loss."""
        loss, mixture = (float(scores.sums[name]) / float(scores.sums["count"]) for name in ("loss", "mixture"))
        return {"si_sdr": -loss, "si_sdr_improvement": mixture - loss, "loss": loss}

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """The first test mixture and its sources, true and separated, as files and waveforms."""
        batch, rate = gather(splits.test, np.arange(1)), self.spec.sample_rate
        mixture, truth = (batch[name][0, : batch["length"][0]] for name in ("input", "label"))
        separated = inference.separate(mixture[:, 0])
        # Beside each source the output that is most like it.
        pairs = map(jnp.asarray, np.broadcast_arrays(separated[None], truth.T[..., None]))
        nearest = np.asarray(si_sdr(*pairs)).argmax(1)
        sounds = {"mixture": mixture[:, 0]}
        for i, name in enumerate(self.spec.outputs):
            sounds |= {name: truth[:, i], f"{name}_separated": separated[:, nearest[i]]}
        for name, one in sounds.items():
            sound.write_wav(folder / f"{name}.wav", np.clip(one, -1, 1), rate)
        figure = plots.waveforms(np.stack(list(sounds.values())), rate, list(sounds))
        files = "\n".join(f"- [{name}.wav]({name}.wav)" for name in sounds)
        return Report({"The first test mixture": ("separation", figure)}, [f"## Files\n\n{files}"])

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Mixtures, or a stream."""
        streams.add_stream_flag(parser)
        add_inputs(parser, "sound files to separate, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of sounds."""
        return sound.SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Write NAME_SOURCE.wav for each source; yield the file and the paths of its sources."""
        rate = self.spec.sample_rate
        sounds, _ = sound.read_sounds([pathlib.Path(path) for path in args.inputs], rate=rate)
        files = output_files(args.inputs, [f"_{name}.wav" for name in self.spec.outputs], args.out, replace=args.replace, rename=True)
        make_folder(args.out)

        def rows() -> Iterator[list[str]]:
            for path, one, targets in zip(args.inputs, sounds, files):
                for file, source in zip(targets, inference.separate(one).T):
                    sound.write_wav(file, source, rate)
                yield [path, *map(str, targets)]

        yield from table_lines(args, ("input", *self.spec.outputs), rows())

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield .wav with a channel for each source."""
        feeder, rate, count = streams.Feeder(inference), self.spec.sample_rate, len(self.spec.outputs)
        stride, samples = getattr(feeder.model, "stride", 1), streams.sound_pieces(inference, file)
        heard = np.zeros(0, np.float32)  # samples whose sources are still to come

        def chunks() -> Iterator[np.ndarray]:
            nonlocal heard
            for block in streams.blocks(samples, -(-rate // streams.BLOCKS // stride) * stride):
                heard = np.concatenate([heard, block])
                yield np.pad(block, (0, -len(block) % stride))[:, None]

        yield sound.open_header(rate, count)
        # The loss does not see the scale of a source: it is that with which all sources come closest to the mixture so far.
        products, towards = np.zeros((count, count)), np.zeros(count)
        for outputs in feeder.feed_all(chunks()):
            sources = outputs[: len(heard)].astype(np.float64)  # padding to a whole stride brings more
            mixture, heard = heard[: len(sources)], heard[len(sources) :]
            products, towards = products + sources.T @ sources, towards + sources.T @ mixture
            yield sound.pcm(np.clip(sources * np.linalg.lstsq(products, towards, rcond=None)[0], -1, 1))


def _valid(batch: Batch) -> jax.Array:
    return valid_steps(batch["input"].shape[1], batch["length"])


def _table(sounds: list[np.ndarray], length: int) -> Table:
    x, lengths = padded(pieces(sounds, length), length)
    return Table({"input": x[..., :1], "label": x[..., 1:], "length": lengths})


def _share_out(sounds: list[np.ndarray], share: float, seed: int, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    chosen = held_out(np.zeros(len(sounds), np.int32), share, seed, name)
    assert chosen is not None
    return [one for one, held in zip(sounds, chosen) if not held], [one for one, held in zip(sounds, chosen) if held]
