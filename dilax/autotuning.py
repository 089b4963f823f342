"""Time the lowerings on the device at hand."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dilax import arguments
from dilax.errors import UserError, did_you_mean, shown
from dilax.geometry import is_integer
from dilax.lowerings import LOWERINGS, convolve, supports
from dilax.plan import ConvPlan

MEASURES = ("forward", "training")


def autotune(what: Callable[..., Any] | ConvPlan, *args: Any, measure: str = "training", repeats: int = 5, table: bool = True) -> str:
    """Time every lowering on the default device and return the name of the fastest.

    The result is not cached and no file is written: pass the returned name as `lowering=`.

    Args:
        what: A `ConvPlan`, or a function that takes `*args` and the keyword `lowering`, such as
            `lambda x, kernel, lowering: dilated_conv(x, kernel, dilation=2, lowering=lowering)`. A function is compiled and timed as it
            is; to time training, have it compute gradients.
        *args: Arguments of the function. A plan takes none; its arrays are random.
        measure: What to time for a plan: "forward", or "training", which computes the output and both gradients.
        repeats: Number of timed runs per lowering. The lowerings take turns, after one run of each that is not timed.
        table: Whether to print one line per lowering: median milliseconds, and the time relative to the fastest.

    Returns:
        The name of the fastest lowering, or "auto" if "auto" is within 5 % of it.

    Raises:
        UserError: if `what` is neither a plan nor a function, another argument is invalid, or no lowering can run.

    Example:
        >>> plan = ConvPlan(1, (64,), 8, 8, (3,), (1,), ((2, 2),), (2,), 8, "float32")
        >>> autotune(plan, repeats=1, table=False) in ("auto", *LOWERINGS)
        True
    """
    if not is_integer(repeats) or repeats < 1:
        raise UserError(f"autotune: repeats={shown(repeats)} is not a positive integer; use 1 or more.")
    repeats, table = int(repeats), arguments.flag("autotune", "table", table)
    run, names, args = _candidates(what, args, measure)
    programs, errors = {}, {}
    for name in names:
        try:
            # A lowering that cannot compute the function raises when it is traced.
            programs[name] = jax.jit(lambda *args, name=name: run(*args, lowering=name)).lower(*args).compile()
        except UserError as error:
            errors[name] = str(error)
    if not programs:
        raise UserError(f"autotune: no lowering can run it: {next(iter(errors.values()))}")
    medians = _median_seconds(programs, args, repeats)
    fastest = min(medians, key=medians.__getitem__)
    if table:
        _print_table(medians, fastest)
    return "auto" if medians.get("auto", float("inf")) <= 1.05 * medians[fastest] else fastest


def _candidates(what: Any, args: tuple[Any, ...], measure: str) -> tuple[Callable[..., Any], list[str], tuple[Any, ...]]:
    """Return the function to time, the lowerings to try, and the arguments."""
    if not isinstance(measure, str) or measure not in MEASURES:
        raise UserError(f"autotune: measure={shown(measure)} is unknown; use one of {MEASURES}.{did_you_mean(str(measure), MEASURES)}")
    if not isinstance(what, ConvPlan):
        if not callable(what):
            raise UserError(f"autotune: {shown(what)} is neither a ConvPlan nor a function; give one of them.")
        return what, ["auto", *LOWERINGS], args
    if args:
        raise UserError(f"autotune: a ConvPlan takes no further arguments, got {len(args)}; its arrays are drawn at random.")
    if what.symbolic:
        raise UserError("autotune: a plan with symbolic lengths cannot be timed; give numbers.")
    x, kernel, cotangent = (
        jax.random.normal(jax.random.key(i), shape).astype(what.dtype)
        for i, shape in enumerate((what.x_shape, what.kernel_shape, what.y_shape))
    )

    def training(x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, lowering: str) -> Any:
        y, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, what, lowering), x, kernel)
        return y, pullback(cotangent)

    def forward(x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, lowering: str) -> Any:
        del cotangent
        return convolve(x, kernel, what, lowering)

    names = ["auto", *(name for name in LOWERINGS if supports(name, what))]
    return training if measure == "training" else forward, names, (x, kernel, cotangent)


def _median_seconds(programs: Mapping[str, Callable[..., Any]], args: tuple[Any, ...], repeats: int) -> dict[str, float]:
    """Run compiled programs in turn, so that a busy machine slows all of them; the first run of each is not timed."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _print_table(medians: Mapping[str, float], fastest: str) -> None:
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), jax {jax.__version__}")
    for name, seconds in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:10s} {1e3 * seconds:10.3f} ms  {seconds / medians[fastest]:6.2f}")
