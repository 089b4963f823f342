"""Generate the torch fixture of tests/test_context.py: `python tests/golden/make_resize.py`. Requires torch.

resize.npz holds, for every case, x and y (channels last) and the arguments of `dilax.resize` as JSON. torch computes in float64 from
float32 inputs, so that the stored float32 results are correctly rounded.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

# name: (shape of x, size, method, align_corners)
CASES = {
    "1d": ((2, 7, 3), (16,), "bilinear", False),
    "1d smaller": ((2, 23, 2), (9,), "bilinear", False),
    "1d corners": ((2, 7, 2), (12,), "bilinear", True),
    "2d twice and three times": ((2, 5, 4, 3), (10, 12), "bilinear", False),
    "2d eight times": ((1, 3, 4, 2), (24, 32), "bilinear", False),
    "2d odd": ((1, 6, 5, 2), (13, 11), "bilinear", False),
    "2d half and third": ((1, 8, 9, 2), (4, 3), "bilinear", False),
    "2d up and down": ((1, 4, 9, 2), (7, 5), "bilinear", False),
    "2d from one": ((1, 1, 1, 2), (3, 4), "bilinear", False),
    "2d corners": ((1, 5, 4, 2), (9, 3), "bilinear", True),
    "3d": ((1, 3, 4, 5, 2), (6, 3, 7), "bilinear", False),
    "nearest up": ((1, 4, 3, 2), (8, 9), "nearest", False),
    "nearest down": ((1, 9, 8, 2), (3, 2), "nearest", False),
    "nearest odd": ((1, 7, 5, 2), (5, 12), "nearest", False),
}
TORCH = {3: "linear", 4: "bilinear", 5: "trilinear"}


def main() -> None:
    import torch  # pyright: ignore[reportMissingImports]

    arrays, arguments = {}, {}
    for seed, (name, (shape, size, method, corners)) in enumerate(CASES.items()):
        x = np.random.default_rng(seed).normal(0.3, 1, shape).astype(np.float32)
        inputs = torch.tensor(np.moveaxis(x, -1, 1), dtype=torch.float64)
        mode: dict[str, Any] = {"mode": "nearest-exact"} if method == "nearest" else {"mode": TORCH[len(shape)], "align_corners": corners}
        y = torch.nn.functional.interpolate(inputs, size, **mode)
        arrays |= {f"{name}.x": x, f"{name}.y": np.moveaxis(y.numpy(), 1, -1).astype(np.float32)}
        arguments[name] = {"size": size, "method": method} | ({"align_corners": True} if corners else {})
    path = Path(__file__).parent / "resize.npz"
    np.savez_compressed(path, allow_pickle=False, arguments=np.array(json.dumps(arguments)), **arrays)


if __name__ == "__main__":
    main()
