"""Generate the fixture of tests/test_spacings.py: `python tests/golden/make_spacings.py`. Requires torch and DCLS 0.1.1.

The file holds, for every case, weights, positions and widths in the layout of dilax, the kernel that DCLS constructs of them, a random
cotangent of the kernel, and the gradients of all three. DCLS computes in float64 from float32 inputs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
VERSIONS = {"bilinear": ("v0", "v1"), "triangle": ("max",), "gaussian": ("gauss",)}

# name: (kernel size, weights, input channels per group, output channels, interpolation, version of DCLS)
CASES = {
    f"{len(size)}d {version}": (size, count, c_in, c_out, interpolation, version)
    for size, count, c_in, c_out in (((9,), 3, 2, 4), ((7, 4), 5, 1, 3), ((3, 5, 4), 2, 2, 2))
    for interpolation, versions in VERSIONS.items()
    for version in versions
}


def axes_of(version: str, rank: int) -> tuple[int, ...]:
    """The axis of the kernel that each row of the positions of DCLS belongs to."""
    if version == "v0":
        return (0, 2, 1) if rank == 3 else tuple(range(rank))
    return tuple(reversed(range(rank)))


def inputs(name: str) -> dict[str, np.ndarray]:
    """Return random weights, positions, widths and the cotangent of a case."""
    size, count, c_in, c_out, interpolation, version = CASES[name]
    rng = np.random.default_rng([*CASES].index(name))
    shape = (count, c_in, c_out)
    positions = np.stack([rng.uniform(-(taps // 2), (taps - 1) // 2, shape) for taps in size]).astype(np.float32)
    # Weights at the ends of the kernel; at taps, the derivatives of the other versions are 0, by the convention of torch.
    positions[:, 0, 0, 0] = [-(taps // 2) for taps in size] if version != "v1" else positions[:, 0, 0, 0]
    if version == "v0":
        positions[:, 0, -1, -1] = [(taps - 1) // 2 for taps in size]
        positions[:, -1, 0, -1] = 0
    arrays = {"weights": rng.normal(size=shape), "positions": positions, "cotangent": rng.normal(size=(*size, c_in, c_out))}
    if interpolation != "bilinear":
        arrays["widths"] = rng.normal(0, 0.6, positions.shape)
    return {key: value.astype(np.float32) for key, value in arrays.items()}


def results(name: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the kernel of DCLS, and its gradients, in the layout of dilax."""
    import torch  # pyright: ignore[reportMissingImports]
    from DCLS.construct import modules  # pyright: ignore[reportMissingImports]

    size, count, c_in, c_out, _, version = CASES[name]
    rank, axes = len(size), axes_of(version, len(size))
    construct = getattr(modules, f"ConstructKernel{rank}d")(c_out, c_in, 1, count, list(size), version)
    weights = torch.tensor(given["weights"].transpose(2, 1, 0).astype(np.float64), requires_grad=True)

    def rows(array: np.ndarray) -> Any:
        return array.transpose(0, 3, 2, 1)[list(axes)].astype(np.float64)

    # DCLS counts the positions of row k from the centre of axis k, whatever axis they belong to.
    shift = np.array([size[axis] // 2 - size[k] // 2 for k, axis in enumerate(axes)]).reshape(-1, 1, 1, 1)
    positions = torch.tensor(rows(given["positions"]) + shift, requires_grad=True)
    widths = torch.tensor(rows(given["widths"]), requires_grad=True) if "widths" in given else None
    kernel = construct(weights, positions, widths)
    cotangent = torch.tensor(given["cotangent"].transpose(rank + 1, rank, *range(rank)).astype(np.float64))
    (kernel * cotangent).sum().backward()

    def ours(gradient: Any) -> np.ndarray:
        return gradient.numpy()[np.argsort(axes)].transpose(0, 3, 2, 1)

    found: dict[str, Any] = {"kernel": kernel.detach().numpy().transpose(*range(2, rank + 2), 1, 0)}
    found |= {"weights_gradient": weights.grad.numpy().transpose(2, 1, 0), "positions_gradient": ours(positions.grad)}  # pyright: ignore
    if widths is not None:
        found["widths_gradient"] = ours(widths.grad)
    return {key: value.astype(np.float32) for key, value in found.items()}


def main() -> None:
    """Write spacings.npz beside this file."""
    arrays: dict[str, Any] = {
        "arguments": json.dumps({name: {"kernel_size": case[0], "interpolation": case[4]} for name, case in CASES.items()})
    }
    for name in CASES:
        given = inputs(name)
        arrays |= {f"{name}.{key}": value for key, value in {**given, **results(name, given)}.items()}
    np.savez_compressed(HERE / "spacings.npz", **arrays)


if __name__ == "__main__":
    main()
