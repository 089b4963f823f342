"""Log-mel frames of sounds, whole or as they come."""

import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from dilax.audio import log_mel
from dilax.inputs import mel_frame

FRAMES_AT_ONCE = 10  # frames of a stream that are computed together: 0.1 s


def log_mel_frames(sounds: list[np.ndarray], rate: int, bands: int) -> list[np.ndarray]:
    """Return the log-mel energies (frames, bands) of each sound (samples,), in frames of `mel_frame`."""
    window, hop = mel_frame(rate)
    # Silence after a sound does not change its own frames, so that one program serves for all.
    length = max(window, *map(len, sounds))
    counts = [1 + max(0, len(samples) - window) // hop for samples in sounds]
    padded = (np.pad(samples, (0, length - len(samples))) for samples in sounds)
    return [np.asarray(_log_mel(samples, rate, bands))[:count] for samples, count in zip(padded, counts)]


def stream_log_mel(pieces: Iterable[np.ndarray], rate: int, bands: int) -> Iterator[np.ndarray]:
    """Yield the log-mel frames (n, bands) of a stream, those of `log_mel_frames`, `FRAMES_AT_ONCE` at a time."""
    window, hop = mel_frame(rate)
    needed = window + (FRAMES_AT_ONCE - 1) * hop
    held, any_yet = np.zeros(0, np.float32), False
    for piece in pieces:
        held = np.concatenate([held, piece])
        while len(held) >= needed:
            yield np.asarray(_log_mel(held[:needed], rate, bands))
            held, any_yet = held[FRAMES_AT_ONCE * hop :], True
    left = 1 + (len(held) - window) // hop if len(held) >= window else int(not any_yet)
    if left:
        yield np.asarray(_log_mel(np.pad(held, (0, needed - len(held))), rate, bands))[:left]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _log_mel(samples: jax.Array, rate: int, bands: int) -> jax.Array:
    window, hop = mel_frame(rate)
    return log_mel(samples[None], rate, window=window, hop=hop, bands=bands)[0]
