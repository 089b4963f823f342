"""Generate the torch fixtures of tests/test_golden.py: `python tests/golden/make_golden.py`. Requires torch.

Each .npz file holds, for every case, its arrays in the layout of dilax (channels last) and the arguments of dilax as JSON. torch computes
in float64 from float32 inputs, so that the stored float32 results are correctly rounded.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent

# name: (shape of x, shape of kernel, arguments of torch, arguments of dilax), shapes in the layout of dilax
CONV = {
    "1d": ((2, 11, 3), (3, 3, 4), {"padding": 2, "dilation": 2}, {"padding": 2, "dilation": 2}),
    "1d stride": ((2, 12, 3), (4, 3, 2), {"stride": 3, "padding": 1, "dilation": 2}, {"stride": 3, "padding": 1, "dilation": 2}),
    "1d torch word": ((2, 9, 2), (3, 2, 3), {"stride": 2, "padding": 3, "dilation": 3}, {"stride": 2, "padding": "TORCH", "dilation": 3}),
    "1d same, odd sample": ((1, 8, 2), (2, 2, 3), {"padding": "same", "dilation": 3}, {"padding": "SAME", "dilation": 3}),
    "1d same, even window": ((1, 7, 2), (4, 2, 3), {"padding": "same"}, {"padding": "SAME"}),
    "1d valid": ((2, 13, 2), (3, 2, 2), {"padding": "valid", "dilation": 4}, {"padding": "VALID", "dilation": 4}),
    "1d depthwise": ((2, 9, 3), (3, 1, 6), {"padding": 4, "dilation": 4, "groups": 3}, {"padding": "TORCH", "dilation": 4, "groups": 3}),
    "2d": ((2, 6, 7, 3), (3, 2, 3, 4), {"padding": (2, 1), "dilation": (2, 3)}, {"padding": (2, 1), "dilation": (2, 3)}),
    "2d stride": (
        (1, 9, 8, 2),
        (3, 3, 2, 3),
        {"stride": (2, 3), "padding": 2, "dilation": 2},
        {"stride": (2, 3), "padding": "TORCH", "dilation": 2},
    ),
    "2d same, odd sample": ((1, 5, 6, 2), (2, 3, 2, 2), {"padding": "same", "dilation": (3, 1)}, {"padding": "SAME", "dilation": (3, 1)}),
    "2d groups": (
        (2, 5, 6, 4),
        (3, 3, 2, 6),
        {"stride": 2, "padding": 3, "dilation": 2, "groups": 2},
        {"stride": 2, "padding": 3, "dilation": 2, "groups": 2},
    ),
    "2d depthwise": ((1, 6, 5, 4), (3, 3, 1, 4), {"padding": 2, "dilation": 2, "groups": 4}, {"padding": 2, "dilation": 2, "groups": 4}),
    "3d": (
        (1, 4, 5, 6, 2),
        (2, 3, 3, 2, 2),
        {"stride": (1, 2, 1), "padding": (1, 2, 0), "dilation": (3, 2, 1)},
        {"stride": (1, 2, 1), "padding": (1, 2, 0), "dilation": (3, 2, 1)},
    ),
    "3d groups": (
        (1, 4, 3, 5, 4),
        (3, 2, 2, 2, 2),
        {"padding": "same", "dilation": (1, 2, 3), "groups": 2},
        {"padding": "SAME", "dilation": (1, 2, 3), "groups": 2},
    ),
}

# name: (shape of y, shape of kernel, arguments of torch); those of dilax follow, since output_padding enlarges the default output_size.
CONV_TRANSPOSE = {
    "1d": ((2, 5, 4), (3, 3, 4), {"stride": 2, "padding": 1}),
    "1d dilation": ((2, 6, 3), (3, 2, 3), {"stride": 3, "padding": 2, "output_padding": 2, "dilation": 3}),
    "1d stride above the kernel": ((1, 4, 2), (2, 3, 2), {"stride": 4, "output_padding": 3}),
    "1d groups": ((2, 5, 6), (4, 2, 6), {"stride": 2, "padding": 3, "output_padding": 1, "dilation": 2, "groups": 3}),
    "2d": ((1, 3, 4, 3), (3, 3, 2, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "2d unequal": ((2, 4, 3, 2), (2, 3, 3, 2), {"stride": (1, 3), "padding": (0, 2), "output_padding": (0, 1), "dilation": (3, 2)}),
    "2d depthwise": ((1, 4, 3, 4), (3, 3, 1, 4), {"stride": 2, "padding": 2, "output_padding": 1, "dilation": 2, "groups": 4}),
    "3d": (
        (1, 3, 2, 3, 2),
        (2, 3, 2, 2, 2),
        {"stride": (2, 1, 2), "padding": (0, 1, 1), "output_padding": (1, 0, 0), "dilation": (2, 1, 2)},
    ),
}


def run(op: Any, x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], arguments: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Return random x, kernel and g, the y of torch, and its gradients of sum(g * y), all channels last."""
    import torch  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(seed)
    x = rng.normal(0.3, 1, x_shape).astype(np.float32)
    kernel = rng.normal(0.3, 1, kernel_shape).astype(np.float32)
    torch_x = torch.tensor(np.moveaxis(x, -1, 1), dtype=torch.float64, requires_grad=True)
    torch_kernel = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)), dtype=torch.float64, requires_grad=True)
    torch_y = op(torch_x, torch_kernel, **arguments)
    y = np.moveaxis(torch_y.detach().numpy(), 1, -1)
    g = rng.normal(0.3, 1, y.shape).astype(np.float32)
    torch_y.backward(torch.tensor(np.moveaxis(g, -1, 1), dtype=torch.float64))
    assert torch_x.grad is not None and torch_kernel.grad is not None
    for_x = np.moveaxis(torch_x.grad.numpy(), 1, -1)
    for_kernel = np.moveaxis(torch_kernel.grad.numpy(), (0, 1), (-1, -2))
    arrays = {"x": x, "kernel": kernel, "y": y, "g": g, "for_x": for_x, "for_kernel": for_kernel}
    return {key: array.astype(np.float32) for key, array in arrays.items()}


def transposed_arguments(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Translate the arguments of torch's conv_transpose: padding is that of the forward convolution, output_padding a longer output."""
    options = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1} | options
    stride, padding, extra, dilation = (np.array(options[key]) for key in ("stride", "padding", "output_padding", "dilation"))
    space, window = np.array(x_shape[1:-1]), np.array(kernel_shape[:-2])
    size = (space - 1) * stride - 2 * padding + dilation * (window - 1) + extra + 1
    return {key: value for key, value in options.items() if key != "output_padding"} | {"output_size": size.tolist()}


def save(name: str, cases: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]) -> None:
    arrays = {f"{case}.{key}": array for case, (result, _) in cases.items() for key, array in result.items()}
    arguments = {case: options for case, (_, options) in cases.items()}
    np.savez_compressed(HERE / f"{name}.npz", allow_pickle=False, arguments=np.array(json.dumps(arguments)), **arrays)


def main() -> None:
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    ranks = {3: "1d", 4: "2d", 5: "3d"}
    conv, transpose = {}, {}
    for seed, (name, (x, kernel, theirs, ours)) in enumerate(CONV.items()):
        conv[name] = run(getattr(functional, f"conv{ranks[len(x)]}"), x, kernel, theirs, seed), ours
    for seed, (name, (x, kernel, theirs)) in enumerate(CONV_TRANSPOSE.items(), start=len(CONV)):
        result = run(getattr(functional, f"conv_transpose{ranks[len(x)]}"), x, kernel, theirs, seed)
        transpose[name] = result, transposed_arguments(x, kernel, theirs)
    save("conv", conv)
    save("conv_transpose", transpose)


if __name__ == "__main__":
    main()
