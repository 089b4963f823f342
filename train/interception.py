"""What the training step changes in how the modules of a model run, by intercepting their calls."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

from dilax.blocks import Norm
from dilax.loading import leaves_with_paths


@contextlib.contextmanager
def frozen_statistics(patterns: Sequence[str]) -> Iterator[None]:
    """Have the normalisations whose parameters all match one of the patterns use and keep their running statistics in training."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, Norm) and context.method_name == "__call__":
            paths = ["/".join((*module.path, path)) for path, _ in leaves_with_paths(module.variables.get("params", {}))]
            if paths and all(any(re.search(pattern, path) for pattern in patterns) for path in paths):
                kwargs = {**kwargs, "train": False}
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept) if patterns else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def recorded(paths: list[str]) -> Iterator[None]:
    """Have the paths of the modules that are called appended to `paths`."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__" and context.module.path:
            paths.append("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


@contextlib.contextmanager
def recomputed(patterns: Sequence[str]) -> Iterator[None]:
    """Have the outermost modules whose paths match a pattern keep nothing but their inputs for the backward pass, and run again in it."""
    inside: list[str] = []

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        outermost = path and not inside and context.method_name == "__call__"
        if not outermost or not any(re.search(pattern, path) for pattern in patterns):
            return call(*args, **kwargs)
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays = {number: leaf for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

        def run(module: nn.Module, arrays: dict[int, jax.Array]) -> Any:
            args, kwargs = structure.unflatten(arrays.get(number, leaf) for number, leaf in enumerate(leaves))
            inside.append(path)
            try:
                return module(*args, **kwargs)  # pyright: ignore[reportCallIssue]
            finally:
                inside.pop()

        return nn.remat(run)(context.module, arrays)

    with nn.intercept_methods(intercept) if patterns else contextlib.nullcontext():
        yield
