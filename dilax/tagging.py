"""Tags of words: spans as B-, I- and O tags (IOB2), which tag may follow which, words as integer codes, and decoding.

Lists of tags begin with "O": it is class 0, and counts as the tag before the first word.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dilax import arguments, crf
from dilax.errors import UserError, shown
from dilax.segments import Segment, checked_steps

OUTSIDE, UNKNOWN = "O", "<unknown>"
SHAPES = ("other", "lower", "capital", "capitalised", "upper", "mixed", "digits", "number", "letters and digits", "hyphenated", "sign")
_WORD = re.compile(r"\w+|[^\w\s]", re.UNICODE)
_NUMBER = re.compile(r"[-+]?\d[\d.,]*")


def words_of(text: str) -> list[Segment]:
    """Return the words and the signs of a text, each with where it starts and ends.

    Args:
        text: The text.

    Raises:
        UserError: if it is not a str.

    Example:
        >>> [word.label for word in words_of("familial (APC) cancer")]
        ['familial', '(', 'APC', ')', 'cancer']
    """
    return [Segment(found.start(), found.end(), found[0]) for found in _WORD.finditer(arguments.text("words_of", "text", text))]


def normalised(word: str) -> str:
    """Return a word as vocabularies hold it: in lower case, with 0 for every digit.

    Args:
        word: The word.

    Example:
        >>> normalised("BRCA2")
        'brca0'
    """
    return re.sub(r"\d", "0", arguments.text("normalised", "word", word).lower())


def shape_of(word: str) -> int:
    """Return the place in `SHAPES` of what a word looks like.

    Args:
        word: The word.

    Example:
        >>> [SHAPES[shape_of(word)] for word in ("the", "The", "APC", "BRCA2", "1,000", "(")]
        ['lower', 'capitalised', 'upper', 'letters and digits', 'number', 'sign']
    """
    word = arguments.text("shape_of", "word", word)
    letters, digits = any(map(str.isalpha, word)), any(map(str.isdigit, word))
    forms = {
        "digits": word.isdigit(),
        "number": bool(_NUMBER.fullmatch(word)),
        "letters and digits": letters and digits,
        "sign": not letters and not digits,
        "hyphenated": letters and "-" in word[1:-1],
        "lower": word.islower(),
        "capital": len(word) == 1 and word.isupper(),
        "upper": word.isupper(),
        "capitalised": word[:1].isupper() and word[1:].islower(),
        "mixed": letters,
    }
    return SHAPES.index(next((name for name, fits in forms.items() if fits), "other"))


def encode_words(words: Sequence[str], symbols: Sequence[str], *, characters: int = 16) -> np.ndarray:
    """Return words as codes, which `dilax.models.IDCNN` reads.

    Args:
        words: The words of a sentence.
        symbols: The vocabulary, of `normalised` words, which begins with `UNKNOWN`.
        characters: Bytes of the UTF-8 form that are read: of a longer word its first and its last.

    Returns:
        int32 (words, 2 + characters): the place of each word in the vocabulary, or 0; that of its shape in `SHAPES`; and its bytes plus
        1, followed by 0.

    Raises:
        UserError: if words are not texts, the vocabulary does not begin with `UNKNOWN`, or `characters` is not positive.

    Example:
        >>> encode_words(["The", "ox"], (UNKNOWN, "the"), characters=3).tolist()
        [[1, 3, 85, 105, 102], [0, 1, 112, 121, 0]]
    """
    caller = "encode_words"
    characters = arguments.integer(caller, "characters", characters, minimum=1)
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"{caller}: words={shown(words)} is not a list of words; give one of texts that are not empty.")
    if not isinstance(symbols, list | tuple) or symbols[:1] not in ([UNKNOWN], (UNKNOWN,)):
        raise UserError(f"{caller}: symbols={shown(symbols)} do not begin with {UNKNOWN!r}; add it, and give the vocabulary.")
    places = {symbol: place for place, symbol in enumerate(symbols)}
    codes = np.zeros((len(words), 2 + characters), np.int32)
    for row, word in zip(codes, words):
        row[:2] = places.get(normalised(word), 0), shape_of(word)
        whole = word.encode("utf-8", errors="replace")
        half = characters // 2
        kept = whole if len(whole) <= characters else whole[: characters - half] + whole[len(whole) - half :]
        row[2 : 2 + len(kept)] = np.frombuffer(kept, np.uint8).astype(np.int32) + 1
    return codes


def tag_names(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of kinds of spans: "O", and B- and I- of each.

    Args:
        kinds: Names of the kinds, such as "Disease".

    Example:
        >>> tag_names(["Disease"])
        ('O', 'B-Disease', 'I-Disease')
    """
    return (OUTSIDE, *(f"{part}-{arguments.text('tag_names', 'kinds', kind)}" for kind in kinds for part in "BI"))


def allowed_transitions(names: Sequence[str]) -> np.ndarray:
    """Return which tag may follow which: I- follows only B- or I- of the same kind.

    Args:
        names: The tags, "O" first.

    Returns:
        bool (tags, tags): row the tag before, column the tag.

    Raises:
        UserError: if names do not begin with "O", or one is neither that nor begins with "B-" or "I-".

    Example:
        >>> allowed_transitions(("O", "B-Disease", "I-Disease"))[:, 2].tolist()
        [False, True, True]
    """
    parts, kinds = _parts("allowed_transitions", names)
    inside = parts == 2
    return ~inside[None, :] | ((kinds[:, None] == kinds[None, :]) & (parts[:, None] > 0))


def _parts(caller: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each tag 0 for O, 1 for B- and 2 for I-, and the number of its kind, -1 for O."""
    if not isinstance(names, list | tuple) or names[:1] not in ([OUTSIDE], (OUTSIDE,)):
        raise UserError(f'{caller}: names={shown(names)} do not begin with "O"; give the tags, that first.')
    if wrong := [name for name in names if name != OUTSIDE and not (isinstance(name, str) and name[:2] in ("B-", "I-") and name[2:])]:
        raise UserError(f'{caller}: names hold {shown(wrong[0])}; tags are "O", and "B-" and "I-" before the name of a kind.')
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(name[2:] for name in names if name != OUTSIDE))}
    return np.array([" BI".index(name[0]) if name != OUTSIDE else 0 for name in names]), np.array(
        [kinds.get(name[2:], -1) for name in names]
    )


def spans(tags: Sequence[str]) -> list[Segment]:
    """Return the spans that tags say, strictly: one begins with B-, and goes on with I- of the same kind.

    Args:
        tags: The tag of each word; an I- that continues no span is ignored.

    Raises:
        UserError: if a tag is neither "O" nor begins with "B-" or "I-".

    Example:
        >>> spans(["B-Disease", "I-Disease", "O", "I-Disease"])
        [Segment(start=0, end=2, label='Disease')]
    """
    _parts("spans", (OUTSIDE, *tags))
    found: list[Segment] = []
    is_open = False
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append(Segment(i, i + 1, tag[2:]))
            is_open = True
        elif is_open and tag == f"I-{found[-1].label}":
            found[-1] = found[-1]._replace(end=i + 1)
        else:
            is_open = False
    return found


def span_scores(found: jax.Array, labels: jax.Array, mask: jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
    """Return how many spans of each sequence are found, found wrongly, and missed; a span is found if its kind and both ends are right.

    Args:
        found: (batch, time), integers, the predicted tags.
        labels: (batch, time), integers, the true tags.
        mask: bool (batch, time), False at steps that do not count.
        names: The tags, "O" first.

    Returns:
        "found", "wrong" and "missed", int32 (batch,), for `dilax.segments.f1_score`.

    Raises:
        UserError: if shapes or dtypes do not fit, or names are not tags.

    Example:
        >>> tags = jnp.array([[1, 2, 0, 1]]), jnp.array([[1, 2, 0, 0]])
        >>> {name: int(count[0]) for name, count in span_scores(*tags, jnp.ones((1, 4), bool), ("O", "B-x", "I-x")).items()}
        {'found': 1, 'wrong': 1, 'missed': 0}

    Reference:
        Tjong Kim Sang & De Meulder 2003, arXiv:cs/0306050, section 2.4; the strict mode of seqeval with IOB2 gives the same.
    """
    caller = "span_scores"
    found, labels, mask = checked_steps(caller, found, labels, mask)
    parts, kinds = map(jnp.asarray, _parts(caller, names))
    ours, theirs = (_spans(jnp.where(mask, tags, 0), parts, kinds) for tags in (found, labels))
    same = (ours[0] & theirs[0] & (ours[1] == theirs[1]) & (ours[2] == theirs[2])).astype(jnp.int32).sum(1)
    total, true = (begins.astype(jnp.int32).sum(1) for begins, _, _ in (ours, theirs))
    return {"found": same, "wrong": total - same, "missed": true - same}


def _spans(tags: jax.Array, parts: jax.Array, kinds: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return at which steps (batch, time) spans begin, their kinds, and the ends of the spans that begin there."""
    part, kind = parts[tags], kinds[tags]
    same = jnp.concatenate([jnp.zeros_like(kind[:, :1], bool), kind[:, 1:] == kind[:, :-1]], 1)
    steps = jnp.arange(tags.shape[1], dtype=jnp.int32)[None]
    # The first step at or after each that continues no span.
    stops = jax.lax.cummin(jnp.where((part == 2) & same, tags.shape[1], steps), axis=1, reverse=True)
    ends = jnp.concatenate([stops[:, 1:], jnp.full_like(stops[:, :1], tags.shape[1])], 1)
    return part == 1, kind, ends


def decode_tags(outputs: jax.Array, mask: jax.Array | None, names: Sequence[str]) -> jax.Array:
    """Return the most probable tags of which each may follow the one before.

    Args:
        outputs: (batch, time, tags), logits; or (batch, time, tags, tags), the scores of a conditional random field, see `dilax.crf`.
        mask: bool (batch, time), True up to the end of each sequence; None counts all steps.
        names: The tags, "O" first.

    Returns:
        int32 (batch, time), 0 after the end of a sequence.

    Raises:
        UserError: if shapes do not fit, or names are not tags.

    Example:
        >>> decode_tags(jnp.array([[[0.0, 0.0, 9.0], [0.0, 1.0, 9.0]]]), None, ("O", "B-x", "I-x")).tolist()  # and not I-x twice
        [[1, 2]]
    """
    return crf.best_path(tag_scores("decode_tags", outputs, names), mask)[0]


def tag_scores(caller: str, outputs: jax.Array, names: Sequence[str]) -> jax.Array:
    """Return logits (batch, time, tags) or scores of a field as scores (batch, time, tags, tags), in which forbidden tags never follow."""
    allowed = jnp.asarray(allowed_transitions(names))
    outputs = arguments.array(caller, "outputs", outputs, "floating-point")
    if outputs.ndim not in (3, 4) or set(outputs.shape[2:]) != {len(names)}:
        raise UserError(
            f"{caller}: outputs of shape {outputs.shape} do not fit {len(names)} tags; give (batch, time, tags) or "
            "(batch, time, tags, tags)."
        )
    if outputs.ndim == 4:
        return crf.forbid(outputs, allowed)
    return crf.chain_scores(outputs, jnp.zeros((len(names), len(names))), allowed=allowed)
