"""Generation of sound: the next sample of a waveform."""

import argparse
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, plots
from dilax.audio import mu_law_encode
from dilax.generate import continue_sequence
from train.data.readers import sound
from train.data.readers.files import data_path, intact, list_files
from train.data.splits import Splits, divided, origin_of
from train.keys import ON_BAD, Key, Keys, Reads
from train.tasks import streams
from train.tasks.base import Bytes, Report, Scores, Shape, make_folder, output_files, table_lines
from train.tasks.steps import CODE_MODELS, SAMPLE_KEYS, TEST_KEYS, WINDOW_KEYS, StepTask, check_causal, check_name, prompts, window_splits

SAMPLES = 3  # sounds drawn for the report


class Waveform(StepTask):
    """Learns the next sample of sound: a mu-law code, or a mixture of logistics."""

    name = "waveform"
    keys: ClassVar[Keys] = {
        **WINDOW_KEYS,
        **TEST_KEYS,
        **SAMPLE_KEYS,
        "data.on_bad": ON_BAD,
        "sequence.levels": Key(256, "mu-law levels of a sample", (2, 65536)),
    }
    reads: ClassVar[Reads] = {"wav": ()}

    def loss_and_metric(self) -> tuple[str, str]:
        """Bits of a sample."""
        return "mixture" if _is_mixture(self.config) else "categorical", "bits_per_sample"

    def output_shapes(self) -> tuple[Shape, ...]:
        """Logits, or the parameters of the mixture."""
        outputs = 3 * self.config.model.mixtures if self.kind == "mixture" else len(self.spec.outputs)
        return ((self.spec.input_shape[0], outputs),)

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse models that see the next sample."""
        check_causal(config, CODE_MODELS)

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a folder of sounds, as codes or as floats for a mixture; whole files are held out."""
        check_name(config, tuple(cls.reads))
        folder = data_path(config, "a folder of sound files")
        folders = divided(folder, validation=bool(config.data.validation))
        files = {split: list_files(path, sound.SUFFIXES) for split, path in (folders or {"train": folder}).items()}
        for split, paths in files.items():
            if not paths:
                where = folders.get(split, folder)
                raise UserError(f'"{where}" is not a folder that holds sound files ({", ".join(sound.SUFFIXES)}); give one that does.')
        files = {split: intact(paths, sound.decode_sound, config.data.on_bad, f"sounds for {split}") for split, paths in files.items()}
        sounds, rate = sound.read_sounds([path for paths in files.values() for path in paths], rate=like.sample_rate if like else None)
        mixture, levels = _is_mixture(config), config.sequence.levels
        values = iter([one[:, None] if mixture else np.asarray(mu_law_encode(jnp.asarray(one), levels=levels)) for one in sounds])
        parts = _share_out(config, {split: [next(values) for _ in paths] for split, paths in files.items()})
        symbols = () if mixture else tuple(map(str, range(levels)))
        origin, kind = origin_of(folder, folders), "levels" if symbols else "outputs"
        return window_splits(config, parts, symbols or ("sample",), origin, kind, symbols=symbols, sample_rate=rate)

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Drawn sounds, as files and waveforms."""
        options, rate = self.config.sequence, self.spec.sample_rate
        if not options.sample:
            return Report({})
        beginnings = prompts(splits.test, min(SAMPLES, len(splits.test)))
        drawn = inference.sample(beginnings, options.sample, temperature=options.temperature, seed=self.config.seed)
        sounds, names = np.concatenate([inference.to_sound(beginnings), inference.to_sound(drawn)], axis=1), []
        for i, one in enumerate(sounds):
            names.append(f"sample_{i}.wav")
            sound.write_wav(folder / names[-1], one, rate)
        says = f"The first {beginnings.shape[1] / rate:.3g} s of each are from the test split, the rest is drawn."
        files = "\n".join(f"- [{name}]({name})" for name in names)
        return Report({"Drawn sounds": ("samples", plots.waveforms(sounds, rate, names))}, [f"## Files\n\n{says}\n\n{files}"])

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Options of the draw, and sound files."""
        streams.add_sampling_flags(parser, "samples", "sound files to continue, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of sounds."""
        return sound.SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Write NAME_continued.wav for each sound; yield the file, the path of the new one and its seconds."""
        options, rate = streams.sampling(args), self.spec.sample_rate
        sounds, _ = sound.read_sounds([pathlib.Path(path) for path in args.inputs], rate=rate)
        files = output_files(args.inputs, ("_continued.wav",), args.out, replace=args.replace, rename=True)
        make_folder(args.out)

        def rows() -> Iterator[tuple[str, str, str]]:
            for path, one, (file,) in zip(args.inputs, sounds, files):
                drawn = inference.to_sound(inference.sample(self._model_input(one)[None], args.steps, seed=args.seed, **options))[0]
                sound.write_wav(file, np.concatenate([one, drawn]), rate)
                yield path, str(file), f"{(len(one) + len(drawn)) / rate:.3f} s"

        yield from table_lines(args, ("input", "continued", "length"), rows())

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield .wav of what comes in, then of `steps` samples more."""
        options, rate, feeder = streams.sampling(args), self.spec.sample_rate, streams.Feeder(inference)
        size, key = max(1, rate // streams.BLOCKS), jax.random.key(args.seed)
        pieces = streams.sound_pieces(inference, file)
        yield sound.open_header(rate, 1)
        for samples in streams.blocks(pieces, size):
            feeder(self._model_input(samples))
            yield sound.pcm(samples)
        run: Any = jax.jit(
            lambda variables, key, outputs, state: continue_sequence(feeder.model, variables, key, outputs, state, size, **options)
        )
        outputs, state = feeder.outputs, feeder.state
        for start in range(0, args.steps, size):
            new, outputs, state = run(feeder.variables, jax.random.fold_in(key, start), outputs, state)
            yield sound.pcm(inference.to_sound(np.asarray(new))[0, : args.steps - start])

    def _model_input(self, samples: np.ndarray) -> np.ndarray:
        """Return samples as codes (time,), or as floats (time, 1) for a mixture."""
        levels = len(self.spec.symbols)
        return np.asarray(mu_law_encode(jnp.asarray(samples), levels=levels)) if levels else samples[:, None]


def _is_mixture(config: ConfigDict) -> bool:
    return config.model.get("outputs") == "mixture"


def _share_out(config: ConfigDict, parts: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Take the splits that are missing out of the training files, spread over them so that each has some of every speaker or piece."""
    values, missing = parts["train"], "test" not in parts
    held = max(1, round(len(values) * config.data.validation)) if config.data.validation and "validation" not in parts else 0
    tested = max(1, round(len(values) * config.sequence.test)) if missing else 0
    if len(values) < 1 + held + tested:
        raise UserError(f"config.data.dir={config.data.dir!r} holds {len(values)} sound files, too few to split; cut them into more files.")
    order = np.linspace(0, len(values) - 1, held + tested).round().astype(int).tolist()
    test = order[:: max(1, len(order) // tested)][:tested] if missing else []
    shared = {**parts, "train": [value for i, value in enumerate(values) if i not in order]}
    if missing:
        shared["test"] = [values[i] for i in test]
    if held:
        shared["validation"] = [values[i] for i in order if i not in test]
    return shared
