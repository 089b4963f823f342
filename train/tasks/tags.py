"""What is particular to labels of words: tags in IOB2, vocabularies, and texts with their spans."""

import collections
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from dilax import DataSpec, UserError
from dilax.segments import Segment
from dilax.tagging import UNKNOWN, encode_words, normalised, spans, tag_names
from train.data.readers.conll import Sentence, read_tagged
from train.data.readers.files import data_path
from train.data.splits import Splits
from train.keys import UNLIMITED, Key, Keys
from train.tasks.base import report_table
from train.tasks.steps import padded_splits

UNITS = "words"
KEYS: Keys = {
    "sequence.characters": Key(16, "bytes of each word that are read; of a longer word its first and last ones", (1, UNLIMITED)),
    "sequence.min_count": Key(2, "how often a word occurs in the training split, or it counts as unknown", (1, UNLIMITED)),
    "sequence.word_dropout": Key(0.0, "share of the words that are unknown in a training step, drawn at random", (0, 0.999)),
}
SHOWN = 40  # test sentences that the report looks for mistakes in, and shows


def open_tagged(config: ConfigDict, like: DataSpec | None) -> Splits:
    """Return splits of padded sentences; the vocabulary is that of the training split, or of `like`."""
    options = config.sequence
    parts, origin = read_tagged(
        data_path(config, "a folder with train.tsv and test.tsv, or one such file"), validation=bool(config.data.validation)
    )
    kinds = sorted({tag[2:] for part in parts.values() for one in part for tag in one.tags} - {""})
    names = tag_names(kinds)
    if like is not None and names != like.outputs:
        raise UserError(f"{origin} has the tags {', '.join(names)[:200]}, and the run was trained on {', '.join(like.outputs)[:200]}.")
    if not kinds:
        raise UserError(f"{origin} holds no spans, only the tag O; give data in which some are tagged.")
    symbols = like.symbols if like else _vocabulary(parts["train"], options.min_count)
    length = options.length or max(len(one.words) for part in parts.values() for one in part)

    def codes(one: Sentence) -> np.ndarray:
        return encode_words(one.words, symbols, characters=options.characters)

    train, validation, test = padded_splits(config, parts, length, names, codes, lambda one: one.tags)
    spec = DataSpec(config.data.name, (length, 2 + options.characters), names, len(train), symbols, UNITS)
    return Splits(spec, train, validation, test, origin, ("tags", "sentences"))


def _vocabulary(part: Sequence[Sentence], least: int) -> tuple[str, ...]:
    counts = collections.Counter(normalised(word) for one in part for word in one.words)
    return (UNKNOWN, *sorted(word for word, count in counts.items() if count >= least))


def test_sentences(config: ConfigDict, places: np.ndarray) -> list[Sentence]:
    """Return some sentences of the test split; the batches hold only codes of their words."""
    parts, _ = read_tagged(data_path(config, "the data of the run"), validation=bool(config.data.validation))
    return [parts["test"][place] for place in places.tolist()]


def marked(text: str, found: Sequence[Segment]) -> str:
    """Return a text with its spans in brackets, each with its kind: "[colon cancer: Disease] is ..."; spans are of characters.

    Example:
        >>> marked("colon cancer is", [Segment(0, 12, "Disease")])
        '[colon cancer: Disease] is'
    """
    pieces, at = [], 0
    for one in found:
        pieces += [text[at : one.start], f"[{text[one.start : one.end]}: {one.label}]"]
        at = one.end
    return "".join([*pieces, text[at:]])


def mistakes(sentences: Sequence[tuple[Sequence[str], Sequence[str], Sequence[str]]]) -> str:
    """Return a section of the report with sentences, given as words, true tags and found ones, whose spans differ."""
    rows = []
    for words, truth, found in sentences:
        starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
        pair = [[Segment(starts[one.start], starts[one.end] - 1, one.label) for one in spans(tags)] for tags in (truth, found)]
        if pair[0] != pair[1]:
            rows.append([marked(" ".join(words), one) for one in pair])
    says = f"Of {len(sentences)} test sentences, those in which spans are missing, wrong, or begin or end elsewhere."
    return report_table("Mistakes in sentences", ("true", "found"), rows, says=says)
