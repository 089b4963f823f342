"""Log-mel frames of sounds as they come."""

from collections.abc import Iterable, Iterator

import numpy as np

from dilax.inputs import mel_frame, mel_frames

FRAMES_AT_ONCE = 10  # frames of a stream that are computed together: 0.1 s


def stream_log_mel(pieces: Iterable[np.ndarray], rate: int, bands: int) -> Iterator[np.ndarray]:
    """Yield the log-mel frames (n, bands) of a stream, those of `dilax.inputs.mel_frames`, `FRAMES_AT_ONCE` at a time."""
    window, hop = mel_frame(rate)
    needed = window + (FRAMES_AT_ONCE - 1) * hop
    held, any_yet = np.zeros(0, np.float32), False
    for piece in pieces:
        held = np.concatenate([held, piece])
        while len(held) >= needed:
            yield mel_frames([held[:needed]], rate, bands)[0]
            held, any_yet = held[FRAMES_AT_ONCE * hop :], True
    left = 1 + (len(held) - window) // hop if len(held) >= window else int(not any_yet)
    if left:
        yield mel_frames([np.pad(held, (0, needed - len(held)))], rate, bands)[0][:left]
