"""Language models: the next character or byte of a text."""

import argparse
import pathlib
from collections.abc import Iterator
from typing import ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError
from dilax.generate import sample_codes
from train.data.readers import text
from train.data.readers.files import data_path
from train.data.splits import Splits, divided, origin_of
from train.keys import Key, Keys, Reads
from train.tasks import streams
from train.tasks.base import Bytes, Report, Scores, table_lines
from train.tasks.steps import (
    CODE_MODELS,
    SAMPLE_KEYS,
    SPLIT_NAMES,
    TEST_KEYS,
    WINDOW_KEYS,
    StepTask,
    check_causal,
    check_name,
    cut_along_time,
    prompts,
    window_splits,
)


class LanguageModel(StepTask):
    """Learns the next symbol of a text."""

    name = "language_model"
    keys: ClassVar[Keys] = {
        **WINDOW_KEYS,
        **TEST_KEYS,
        **SAMPLE_KEYS,
        "sequence.units": Key("characters", 'units of the text: "characters" or "bytes"', choices=text.UNITS),
    }
    reads: ClassVar[Reads] = {"text": ("data.dir",), **dict.fromkeys(text.PACKAGES, ())}

    def hub_task(self) -> str:
        """Texts."""
        return "text-generation"

    def loss_and_metric(self) -> tuple[str, str]:
        """Bits of a character or byte."""
        return "categorical", "bits_per_byte" if self.config.sequence.units == "bytes" else "bits_per_character"

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse models that see the next symbol."""
        check_causal(config, CODE_MODELS)

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a text of a package, a text file, or a folder with train.txt, validation.txt and test.txt."""
        name = check_name(config, tuple(cls.reads))
        (parts, origin), units = _parts(config, name), config.sequence.units
        symbols = like.symbols if like else text.symbols_of(parts["train"], units)
        codes = {
            name: [text.encode(part, symbols, units, name=f"the {SPLIT_NAMES[name]} split of {origin}")] for name, part in parts.items()
        }
        return window_splits(config, codes, symbols, origin, units, symbols=symbols, units=units)

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """A drawn text, also in sample.txt."""
        options = self.config.sequence
        if not options.sample:
            return Report({})
        prompt = prompts(splits.test, 1)
        drawn = inference.sample(prompt, options.sample, temperature=options.temperature, seed=self.config.seed)
        before, after = (text.decode(codes[0], self.spec.symbols, self.spec.units) for codes in (prompt, drawn))
        (folder / "sample.txt").write_text(f"{before}{after}\n", encoding="utf-8")
        quoted = "\n".join("    " + line for line in f"{before}⟶{after}".splitlines())
        says = f"The beginning of the test text up to ⟶, then {options.sample} symbols drawn at temperature {options.temperature:g}:"
        return Report({}, [f"## A sample\n\n{says}\n\n{quoted}"])

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Options of the draw, and prompts."""
        streams.add_sampling_flags(parser, "symbols", "beginnings of texts")

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Yield each prompt and its continuation."""
        options = streams.sampling(args)
        codes = [inference.codes(prompt) for prompt in args.inputs]

        def rows() -> Iterator[tuple[str, ...]]:
            for prompt, one in zip(args.inputs, codes):
                drawn = inference.sample(one[None], args.steps, seed=args.seed, **options)
                whole = prompt + text.decode(drawn[0], self.spec.symbols, self.spec.units)
                yield (prompt, whole) if args.csv else (whole,)

        yield from table_lines(args, ("input", "continued"), rows())

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield a line of the run's own, of up to `steps` symbols, after each line; everything before is remembered."""
        options, feeder, key = streams.sampling(args), streams.Feeder(inference), jax.random.key(args.seed)
        draw = jax.jit(lambda key, logits: sample_codes(key, logits, **options))
        for line in streams.lines(file):
            for code in inference.codes(line):
                feeder(np.array([code], np.int32))
            drawn: list[int] = []
            while len(drawn) < args.steps and (not drawn or self.spec.symbols[drawn[-1]] not in ("\n", "10")):
                key, now = jax.random.split(key)
                drawn.append(int(draw(now, feeder.outputs)[0]))
                feeder(np.array(drawn[-1:], np.int32))
            written = text.decode(np.array(drawn), self.spec.symbols, self.spec.units)
            yield (written if written.endswith("\n") else written + "\n").encode()


def _parts(config: ConfigDict, name: str) -> tuple[dict[str, str], str]:
    """Return the text of each split, and where they come from."""
    if name in text.PACKAGES:
        return cut_along_time(text.package_text(name), config), name
    path = data_path(config, "a text file, or a folder with train.txt and test.txt")
    if not path.is_dir():
        return cut_along_time(text.read_text(path), config), str(path)
    files = divided(path, suffix=".txt", validation=bool(config.data.validation))
    if not files:
        raise UserError(f"{path} does not hold train.txt; add it, or give one text file, which is then split.")
    parts = {split: text.read_text(file) for split, file in files.items()}
    if "validation" not in parts:
        parts |= cut_along_time(parts["train"], config, test=False)
    return parts, origin_of(path, files)
