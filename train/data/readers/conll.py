"""Tagged words in files of columns, as those of the CoNLL tasks: a word and its tag on each line, and a blank line after a sentence."""

import dataclasses
import pathlib

from dilax.errors import UserError
from train.data.readers.files import list_files, only_file
from train.data.readers.text import read_text
from train.data.splits import divided, origin_of, with_fixed_test

SUFFIXES = (".conll", ".tsv", ".bio", ".iob2", ".txt")
_START, _SHOWN = "-DOCSTART-", 40


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words and their tags.

    Attributes:
        words: The words.
        tags: The tag of each, in IOB2: O, or B- and I- before the kind of a span.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_tagged(path: pathlib.Path, *, validation: bool = True) -> tuple[dict[str, list[Sentence]], str]:
    """Return the sentences of each split of a folder with train.tsv, test.tsv and perhaps validation.tsv, or of one file.

    The files of a folder have one of `SUFFIXES`. Of a single file, or the only one of a folder, a fixed fifth of the sentences is the test
    split.

    Args:
        path: The folder or the file.
        validation: As for `train.data.splits.divided`.

    Returns:
        {"train", "test" and perhaps "validation": sentences}, and what `Splits.origin` says of them.

    Raises:
        UserError: if the folder does not hold such files, or as `read_conll`.
    """
    path = only_file(path, SUFFIXES)
    if not path.is_dir():
        sentences = read_conll(path)
        if len(sentences) == 1:
            raise UserError(f"{path} is one sentence of {len(sentences[0].words)} words; end each sentence with a blank line.")
        return with_fixed_test(sentences, path, "sentences"), origin_of(path, {})
    for suffix in SUFFIXES:
        if parts := divided(path, suffix=suffix, validation=validation):
            return {part: read_conll(file) for part, file in parts.items()}, origin_of(path, parts)
    present = ", ".join(file.name for file in list_files(path, SUFFIXES)[:5]) or "no file of a known type"
    raise UserError(f"{path} holds {present}; give a folder with train and test files ({', '.join(SUFFIXES)}), or one file.")


def read_conll(path: pathlib.Path) -> list[Sentence]:
    """Return the sentences of a file: on each line a word, perhaps other columns, and a tag, separated by tabs or blanks.

    A blank line ends a sentence. Lines that begin with -DOCSTART- are left out.

    Raises:
        UserError: naming the line, if it has one column, its tag is not one of IOB2, or an I- continues no span; if the file is missing,
            empty or not UTF-8.
    """
    sentences: list[Sentence] = []
    words, tags = list[str](), list[str]()
    for number, line in enumerate([*read_text(path).splitlines(), ""], 1):
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line.strip() else line.split()
        if not cells or cells[0] == _START:
            sentences += [Sentence(tuple(words), tuple(tags))] * bool(words)
            words, tags = [], []
            continue
        where = f"{path}, line {number}"
        if len(cells) < 2 or not cells[0]:
            raise UserError(f"{where}: {line.strip()[:_SHOWN]!r} is not a word and a tag; separate them by a tab or a blank.")
        _check_tag(where, cells[-1], tags[-1] if tags else "O")
        words.append(cells[0])
        tags.append(cells[-1])
    if not sentences:
        raise UserError(f"{path} holds no sentences; give a word and its tag on each line.")
    return sentences


def _check_tag(where: str, tag: str, before: str) -> None:
    """Refuse a tag that is not one of IOB2, or cannot follow the one before."""
    if tag != "O" and (tag[:2] not in ("B-", "I-") or not tag[2:]):
        raise UserError(f'{where}: the tag {tag[:_SHOWN]!r} is not "O", and does not begin with "B-" or "I-"; convert the file to IOB2.')
    if tag.startswith("I-") and before[2:] != tag[2:]:
        raise UserError(
            f"{where}: the tag {tag[:_SHOWN]} follows {before[:_SHOWN]}, and continues no span; begin it with B-{tag[2:][:_SHOWN]}."
        )
