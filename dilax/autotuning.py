"""Measure the lowerings on the user's own device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dilax.errors import UserError, did_you_mean
from dilax.geometry import ConvPlan, is_integer
from dilax.lowerings import LOWERINGS, convolve, supports

MEASURES = ("forward", "training")


def autotune(what: Callable[..., Any] | ConvPlan, *args: Any, measure: str = "training", repeats: int = 5, table: bool = True) -> str:
    """Time every lowering on the default device, side by side, and name the fastest.

    Nothing is kept and no file is written: pass the name on as `lowering=`.

    Args:
        what: A `ConvPlan`; or a function that takes `*args` and the keyword `lowering`, such as
            `lambda x, kernel, lowering: dilated_conv(x, kernel, dilation=2, lowering=lowering)`. It is compiled and timed as it is;
            to time training, let it compute gradients.
        *args: What the function is called with; none for a plan, whose arrays are drawn at random.
        measure: For a plan, "forward" or "training", which is the output and both gradients.
        repeats: Timed runs of each lowering, in turn with the others, after one that compiles.
        table: Whether to print a line per lowering: milliseconds (median), and how much slower than the fastest.

    Returns:
        The name of the fastest lowering, or "auto" if that is as fast (within 5 %).

    Raises:
        UserError: if `what` is neither, or no lowering runs.

    Example:
        >>> plan = ConvPlan(1, (64,), 8, 8, (3,), (1,), ((2, 2),), (2,), 8, "float32")
        >>> autotune(plan, repeats=1, table=False) in ("auto", *LOWERINGS)
        True
    """
    if not is_integer(repeats) or repeats < 1:
        raise UserError(f"autotune: repeats={repeats!r} is no number of runs; use 1 or more.")
    run, names, args = _program(what, args, measure)
    programs, refused = {}, {}
    for name in names:
        try:
            # Lowerings that the function cannot take say so when it is traced.
            programs[name] = jax.jit(lambda *args, name=name: run(*args, lowering=name)).lower(*args).compile()
        except UserError as error:
            refused[name] = str(error)
    if not programs:
        raise UserError(f"autotune: no lowering can run it: {next(iter(refused.values()))}")
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            if turn:
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    best = min(medians, key=medians.__getitem__)
    if table:
        _print(medians, best)
    return "auto" if medians.get("auto", float("inf")) <= 1.05 * medians[best] else best


def _program(what: Any, args: tuple[Any, ...], measure: str) -> tuple[Callable[..., Any], list[str], tuple[Any, ...]]:
    """The function to time, the lowerings to try, and its arguments."""
    if measure not in MEASURES:
        raise UserError(f"autotune: measure={measure!r} is unknown; use one of {MEASURES}.{did_you_mean(str(measure), MEASURES)}")
    if not isinstance(what, ConvPlan):
        if not callable(what):
            raise UserError(f"autotune: {what!r} is neither a ConvPlan nor a function; give one of them.")
        return what, ["auto", *LOWERINGS], args
    if args:
        raise UserError(f"autotune: a ConvPlan takes no further arguments, got {len(args)}; its arrays are drawn at random.")
    if what.symbolic:
        raise UserError("autotune: a plan with symbolic lengths cannot be timed; give numbers.")
    x, kernel, y = (
        jax.random.normal(jax.random.key(i), shape).astype(what.dtype)
        for i, shape in enumerate((what.x_shape, what.kernel_shape, what.y_shape))
    )

    def training(x: jax.Array, kernel: jax.Array, y: jax.Array, *, lowering: str) -> Any:
        result, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, what, lowering), x, kernel)
        return result, pull_back(y)

    def forward(x: jax.Array, kernel: jax.Array, y: jax.Array, *, lowering: str) -> Any:
        del y
        return convolve(x, kernel, what, lowering)

    names = ["auto", *(name for name in LOWERINGS if supports(name, what))]
    return training if measure == "training" else forward, names, (x, kernel, jnp.asarray(y))


def _print(medians: dict[str, float], best: str) -> None:
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), jax {jax.__version__}")
    for name, seconds in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:10s} {1e3 * seconds:10.3f} ms  {seconds / medians[best]:6.2f}")
