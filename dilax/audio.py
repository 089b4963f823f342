"""Features of sound: log-mel spectrograms, and mu-law codes of waveforms."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax import arguments
from dilax.errors import UserError
from dilax.precision import widened


def log_mel(
    x: jax.Array,
    sample_rate: float,
    *,
    window: int = 400,
    hop: int = 160,
    bands: int = 40,
    lowest: float = 20.0,
    highest: float | None = None,
    floor: float = 1e-6,
) -> jax.Array:
    """Compute a log-mel spectrogram: the natural logarithm of the energy of each frame in each mel band.

    Frame f is x[f * hop : f * hop + window] times a periodic Hann window. The signal is not padded: samples after the last complete frame
    are ignored. Each frame is zero-padded to a power of two samples and Fourier-transformed, and the squared magnitudes are summed with
    triangular weights. The triangles are equally spaced on the mel scale of HTK, mel(f) = 2595 log10(1 + f / 700), and linear in mel: each
    rises from the centre of its lower neighbour to 1 at its own centre and falls to the centre of its upper neighbour. They are not
    normalised by their width.

    Args:
        x: (batch, time) floating-point samples.
        sample_rate: Sampling rate in Hz. This and all further arguments are Python numbers.
        window: Samples per frame; 400 are 25 ms at 16 kHz.
        hop: Samples between the starts of neighbouring frames; 160 are 10 ms at 16 kHz.
        bands: Number of mel bands.
        lowest: Lower edge of the first triangle in Hz.
        highest: Upper edge of the last triangle in Hz; None is half of `sample_rate`.
        floor: Smallest energy; lower ones are replaced by it and pass no gradient.

    Returns:
        (batch, 1 + (time - window) // hop, bands), float32, or float64 if x is float64.

    Raises:
        UserError: if x is not floating-point of shape (batch, time), is shorter than a frame, or an option is out of range; or if a band is
            so narrow that no frequency of the transform falls into it.

    Example:
        >>> log_mel(jnp.zeros((2, 16000)), 16000).shape
        (2, 98, 40)

    Reference:
        Young et al. 2002, The HTK Book, section 5.4 (which uses a Hamming window and, by default, magnitudes).
    """
    caller = "log_mel"
    x = arguments.array(caller, "x", x, "floating-point")
    window, hop = (arguments.integer(caller, name, value, minimum=least) for name, value, least in (("window", window, 2), ("hop", hop, 1)))
    floor = arguments.number(caller, "floor", floor, above=0)
    if x.ndim != 2 or x.shape[1] < window:
        raise UserError(f"log_mel: x of shape {x.shape} must be (batch, time) with at least window={window} samples of time.")
    sample_rate, bands, lowest, highest = _check_bands(caller, sample_rate, bands, lowest, highest)
    size = 1 << (window - 1).bit_length()
    filters = mel_filters(sample_rate, size=size, bands=bands, lowest=lowest, highest=highest)
    empty = np.flatnonzero(filters.max(0) == 0)
    if len(empty):
        raise UserError(
            f"log_mel: band {empty[0]} of {bands} falls between two frequencies of a transform of {size} samples at {sample_rate:g} Hz; "
            "use fewer bands, a longer window, or a higher lowest."
        )
    x = widened(x)
    frames = np.arange(0, x.shape[1] - window + 1, hop)[:, None] + np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(x[:, frames] * jnp.asarray(hann, x.dtype)[None, None], size)
    power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    energies = jnp.einsum("bfk,km->bfm", power, jnp.asarray(filters, x.dtype), precision=lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energies, floor))


def mel_filters(sample_rate: float, *, size: int, bands: int, lowest: float, highest: float) -> np.ndarray:
    """Return the triangular weights of each frequency in each mel band, as defined in `log_mel`.

    Args:
        sample_rate: Sampling rate in Hz.
        size: Samples of the Fourier transform.
        bands: Number of mel bands.
        lowest: Lower edge of the first triangle in Hz.
        highest: Upper edge of the last triangle in Hz.

    Raises:
        UserError: if an argument is out of range.

    Returns:
        (size // 2 + 1, bands), from 0 to 1.

    Example:
        >>> mel_filters(16000, size=512, bands=40, lowest=20.0, highest=8000.0).shape
        (257, 40)
    """
    size = arguments.integer("mel_filters", "size", size, minimum=1)
    sample_rate, bands, lowest, highest = _check_bands("mel_filters", sample_rate, bands, lowest, highest)
    mels = _mel(np.arange(size // 2 + 1) * (sample_rate / size))[:, None]
    edges = np.linspace(_mel(lowest), _mel(highest), bands + 2)
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)


def mu_law_encode(x: jax.Array, *, levels: int = 256) -> jax.Array:
    """Quantise a waveform by the mu-law, whose steps are finer near 0.

    Args:
        x: Samples in -1..1, of any shape; values outside that range are clipped.
        levels: Number of codes; mu is levels - 1.

    Returns:
        int32 codes 0..levels - 1, in the shape of x.

    Example:
        >>> mu_law_encode(jnp.array([-1.0, 0.01, 1.0])).tolist()
        [0, 157, 255]

    Reference:
        ITU-T Recommendation G.711.
    """
    mu = arguments.integer("mu_law_encode", "levels", levels, minimum=2) - 1
    x = jnp.clip(arguments.array("mu_law_encode", "x", x, "floating-point"), -1, 1)
    y = jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / jnp.log1p(float(mu))
    return jnp.round((y + 1) / 2 * mu).astype(jnp.int32)


def mu_law_decode(codes: jax.Array, *, levels: int = 256) -> jax.Array:
    """Map mu-law codes back to a waveform; the inverse of `mu_law_encode`.

    Args:
        codes: Integers 0..levels - 1, of any shape.
        levels: Number of codes.

    Returns:
        float32 samples in -1..1, in the shape of codes.

    Example:
        >>> mu_law_decode(mu_law_encode(jnp.array([-1.0, 1.0]))).tolist()
        [-1.0, 1.0]
    """
    mu = arguments.integer("mu_law_decode", "levels", levels, minimum=2) - 1
    codes = arguments.array("mu_law_decode", "codes", codes, "integer")
    y = 2 * codes.astype(jnp.float32) / mu - 1
    return jnp.sign(y) * jnp.expm1(jnp.abs(y) * jnp.log1p(float(mu))) / mu


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _check_bands(caller: str, sample_rate: float, bands: int, lowest: float, highest: float | None) -> tuple[float, int, float, float]:
    """Check the bands, and return the sampling rate, their number and the edges."""
    bands = arguments.integer(caller, "bands", bands, minimum=1)
    rate = arguments.number(caller, "sample_rate", sample_rate, above=0)
    low = arguments.number(caller, "lowest", lowest)
    high = rate / 2 if highest is None else arguments.number(caller, "highest", highest)
    if not 0 <= low < high <= rate / 2:
        raise UserError(f"{caller}: lowest={low} and highest={high} must satisfy 0 <= lowest < highest <= sample_rate / 2 = {rate / 2}.")
    return rate, bands, low, high
