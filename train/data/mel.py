"""Log-mel frames of sounds, whole or as they come."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from dilax.audio import log_mel

FRAMES_AT_ONCE = 10  # frames of a stream that are computed together: 0.1 s


def mel_frame(rate: int) -> tuple[int, int]:
    """Return the samples in a log-mel frame, 32 ms, and from one frame to the next, 10 ms."""
    return round(0.032 * rate), round(0.01 * rate)


def log_mel_frames(sounds: list[np.ndarray], rate: int, bands: int) -> list[np.ndarray]:
    """Return the log-mel energies (frames, bands) of each sound (samples,), in frames of `mel_frame`."""
    window, hop = mel_frame(rate)
    # Silence after a sound does not change its own frames, so that one program serves for all.
    length = max(window, *map(len, sounds))
    run = jax.jit(lambda samples: log_mel(samples[None], rate, window=window, hop=hop, bands=bands)[0])
    counts = [1 + max(0, len(samples) - window) // hop for samples in sounds]
    return [np.asarray(run(np.pad(samples, (0, length - len(samples)))))[:count] for samples, count in zip(sounds, counts)]


def stream_log_mel(pieces: Iterable[np.ndarray], rate: int, bands: int) -> Iterator[np.ndarray]:
    """Yield the log-mel frames (n, bands) of a stream, those of `log_mel_frames`, `FRAMES_AT_ONCE` at a time."""
    window, hop = mel_frame(rate)
    needed = window + (FRAMES_AT_ONCE - 1) * hop
    run = jax.jit(lambda x: log_mel(x[None], rate, window=window, hop=hop, bands=bands)[0])
    held, any_yet = np.zeros(0, np.float32), False
    for piece in pieces:
        held = np.concatenate([held, piece])
        while len(held) >= needed:
            yield np.asarray(run(held[:needed]))
            held, any_yet = held[FRAMES_AT_ONCE * hop :], True
    left = 1 + (len(held) - window) // hop if len(held) >= window else int(not any_yet)
    if left:
        yield np.asarray(run(np.pad(held, (0, needed - len(held)))))[:left]
