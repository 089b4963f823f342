"""Checks of arguments, in one place: each returns the value in the type that the code computes with, or raises a one-line `UserError`.

All take the name of the function that the user called, which messages start with, and the name and the value of the argument. Scalars of
NumPy, and arrays without axes whose value is known, are taken like those of Python; a bool is not a number. Modules are checked when they
run: see `checked`.
"""

import inspect
import numbers
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer

from dilax.errors import UserError, did_you_mean, shown
from dilax.files import user_path

# What an array may hold: the dtypes, and what to convert it to.
KINDS = {
    "floating-point": (jnp.floating, "a floating-point", "float32"),
    "inexact": (jnp.inexact, "a floating-point", "float32"),
    "integer": (jnp.integer, "an integer", "int32"),
    "bool": (jnp.bool_, "a Boolean", "bool"),
}


def plain(value: Any) -> Any:
    """Return the Python value of a scalar of NumPy, or of an array without axes whose value is known; anything else unchanged."""
    known = isinstance(value, np.generic | np.ndarray | jax.Array) and not isinstance(value, Tracer) and value.ndim == 0
    return value.item() if known and any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)) else value


def is_integer(value: Any) -> bool:
    """Return whether `value` is an integer, also as `plain` reads it, and not a bool."""
    value = plain(value)
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_size(value: Any) -> bool:
    """Return whether `value` is an integer or a symbolic size of `jax.export`."""
    return is_integer(value) or export.is_symbolic_dim(value)


def refuse_traced(caller: str, argument: str, value: Any) -> None:
    """Refuse a value that is known only when the compiled function runs, if it, or an entry of it, is one."""
    if any(isinstance(one, Tracer) for one in (value if isinstance(value, tuple | list) else (value,))):
        raise UserError(
            f"{caller}: {argument}={shown(value)} is traced, but must be known when the function is compiled; name it in static_argnames "
            "of jax.jit, or do not pass it through a JAX transformation."
        )


def integer(caller: str, argument: str, value: Any, *, minimum: int | None = None) -> int:
    """Return an integer of at least `minimum`."""
    refuse_traced(caller, argument, value)
    if not is_integer(value):
        raise UserError(f"{caller}: {argument}={shown(value)} is not an integer; give an int.")
    value = int(value)
    if minimum is not None and value < minimum:
        raise UserError(f"{caller}: {argument}={value} is below {minimum}; use {minimum} or more.")
    return value


def number(caller: str, argument: str, value: Any, *, minimum: float | None = None, above: float | None = None) -> float:
    """Return a finite real number."""
    refuse_traced(caller, argument, value)
    given, value = value, plain(value)
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:  # pyright: ignore[reportOperatorIssue]
        raise UserError(f"{caller}: {argument}={shown(given)} is not a finite number; give an int or a float.")
    if minimum is not None and value < minimum:
        raise UserError(f"{caller}: {argument}={shown(value)} is below {minimum}; use {minimum} or more.")
    if above is not None and value <= above:
        raise UserError(f"{caller}: {argument}={shown(value)} is not above {above}; use a larger number.")
    return float(value)


def probability(caller: str, argument: str, value: Any) -> float:
    """Return the probability with which dropout drops a value."""
    value = number(caller, argument, value)
    if not 0 <= value < 1:
        raise UserError(f"{caller}: {argument}={value} is not a valid probability; use 0 <= {argument} < 1.")
    return value


def flag(caller: str, argument: str, value: Any) -> bool:
    """Return a bool."""
    refuse_traced(caller, argument, value)
    if not isinstance(plain(value), bool):
        raise UserError(f"{caller}: {argument}={shown(value)} is not a bool; use True or False.")
    return bool(value)


def word(caller: str, argument: str, value: Any, known: Iterable[str]) -> str:
    """Return one of the `known` words."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{caller}: {argument}={shown(value)} is unknown; use one of {known}.{did_you_mean(str(value), known)}")
    return value


def function(caller: str, argument: str, value: Any) -> Callable[..., Any]:
    """Return a function."""
    if not callable(value):
        raise UserError(f"{caller}: {argument}={shown(value)} is not a function; give one, such as those of `jax.nn.initializers`.")
    return value


def dtype(caller: str, argument: str, value: Any) -> Any:
    """Return a floating-point dtype, or None."""
    try:
        known = value is None or jnp.issubdtype(jnp.dtype(value), jnp.inexact)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise UserError(f"{caller}: {argument}={shown(value)} is not a floating-point dtype; use one such as jnp.float32.")
    return value


def precision(caller: str, value: Any) -> Any:
    """Return a precision that `jax.lax.conv_general_dilated` takes."""
    if value is not None:
        one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
        try:
            hash(value)
            jax.eval_shape(lambda x: jax.lax.conv_general_dilated(x, x, (), "VALID", precision=value), one)
        except (TypeError, ValueError):
            raise UserError(
                f"{caller}: precision={shown(value)} is not a precision; use None, 'default', 'high' or 'highest', or a pair of them."
            ) from None
    return value


def array(caller: str, argument: str, value: Any, *kinds: str) -> jax.Array:
    """Return an array of one of the `kinds`, keys of `KINDS`; of any kind if there are none."""
    try:
        # Of a text, JAX asks whether it is the name of a dtype, some of which are deprecated.
        x = jnp.asarray(None if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{caller}: {argument}={shown(value)} is not an array; give one of numbers.") from None
    if kinds and not any(jnp.issubdtype(x.dtype, KINDS[kind][0]) for kind in kinds):
        words, example = " or ".join(KINDS[kind][1] for kind in kinds), KINDS[kinds[-1]][2]
        hint = f", as in {argument}.astype(bool)" if example == "bool" else ""
        raise UserError(f"{caller}: {argument} has dtype {x.dtype}; convert it to {words} dtype such as {example} first{hint}.")
    return x


def mask(caller: str, value: Any, x: jax.Array) -> jax.Array:
    """Return the mask of an array (batch, *space, channels): bool (batch, *space), where axes of length 1 count for all positions."""
    valid = array(caller, "mask", value, "bool")
    if valid.ndim != x.ndim - 1 or any(n not in (1, m) for n, m in zip(valid.shape, x.shape)):
        raise UserError(f"{caller}: mask of shape {valid.shape} does not fit x of shape {x.shape}; give (batch, *space).")
    return valid


def host_array(caller: str, argument: str, value: Any) -> np.ndarray:
    """Return a NumPy array of real numbers."""
    try:
        x = np.asarray(value)
    except (TypeError, ValueError):
        x = np.asarray(None)
    if x.dtype.kind not in "iuf":
        raise UserError(f"{caller}: {argument}={shown(value)} is not an array of numbers; give one.")
    return x


def per_axis(
    value: Any, rank: int, argument: str, caller: str, *, minimum: int = 1, symbolic: bool = False, axes: str = "spatial"
) -> tuple[Any, ...]:
    """Return `value` as one integer per axis.

    Args:
        value: An int for all axes, or a sequence with one int per axis.
        rank: Number of axes.
        argument: Name of the argument, for error messages.
        caller: Name of the function that the user called, which error messages start with.
        minimum: Smallest value allowed.
        symbolic: Whether symbolic sizes (`jax.export`) are allowed, too; they are not compared with the minimum.
        axes: What the axes are called in messages.

    Raises:
        UserError: if `value` is neither an integer nor `rank` integers, or one of them is below `minimum`.
    """
    refuse_traced(caller, argument, value)
    allowed = is_size if symbolic else is_integer
    values: Any = (value,) * rank if allowed(value) else value
    ints = f"a tuple of {rank} ints" if rank != 1 else "a tuple of one int"
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(map(allowed, values)):
        raise UserError(f"{caller}: {argument}={shown(value)} is not an integer; give an int or {ints}.")
    if len(values) != rank:
        count = f"are {rank} {axes} axes" if rank != 1 else f"is 1 {axes} axis"
        raise UserError(f"{caller}: {argument}={shown(tuple(values))} has length {len(values)}, but there {count}; give an int or {ints}.")
    if any(is_integer(v) and v < minimum for v in values):
        raise UserError(f"{caller}: {argument}={shown(value)} is below {minimum}; use {minimum} or more.")
    return tuple(int(v) if is_integer(v) else v for v in values)


def takes_train(module: Any) -> bool:
    """Return whether a module takes the argument `train`."""
    return "train" in inspect.signature(type(module).__call__).parameters


def check_function(caller: str, fn: Any) -> None:
    """Refuse what is not a function, and a Flax module where a function of one array is asked for.

    Raises:
        UserError: saying how to make a function of the module.
    """
    if not callable(fn):
        raise UserError(f"{caller}: fn={shown(fn)} is not a function; give one of one array, such as lambda x: model.apply(variables, x).")
    if isinstance(fn, type) or not (hasattr(fn, "apply") and hasattr(fn, "init")):
        return
    train = ", train=False" if takes_train(fn) else ""
    raise UserError(
        f"{caller}: a {type(fn).__name__} is a module, and a function of one array is needed; "
        f"give lambda x: model.apply(variables, x{train}), with variables from model.init or dilax.load."
    )


def module(caller: str, argument: str, value: Any) -> Any:
    """Return a Flax module."""
    if isinstance(value, type) or not (hasattr(value, "apply") and hasattr(value, "init")):
        raise UserError(f"{caller}: {argument}={shown(value)} is not a Flax module; give one, such as dilax.models.create('tcn').")
    return value


def text(caller: str, argument: str, value: Any) -> str:
    """Return a str."""
    if not isinstance(value, str):
        raise UserError(f"{caller}: {argument}={shown(value)} is not a str; give one.")
    return value


def path(caller: str, argument: str, value: Any) -> pathlib.Path:
    """Return a path, in which "~" is expanded."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{caller}: {argument}={shown(value)} is not a path; give a str or a pathlib.Path.")
    return user_path(value)


def labels(caller: str, value: np.ndarray, classes: int) -> None:
    """Refuse labels that are not the number of a class; a negative one would count from the last."""
    wrong = [one for one in value.ravel().tolist() if not is_integer(one) or not 0 <= one < classes]
    if wrong:
        raise UserError(f"{caller}: labels hold {shown(wrong[0])}, which is not a class; give integers from 0 to {classes - 1}.")


def shaped(caller: str, argument: str, value: Any) -> Any:
    """Return an array, or what has a shape and a dtype like one."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        value = array(caller, argument, value)
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.number, jnp.bool_)):
        raise UserError(f"{caller}: {argument}={shown(value)} is not an array; give one of numbers.")
    return value


def image(caller: str, argument: str, value: Any) -> Any:
    """Return an array (batch, *space, channels), or what has its shape and dtype."""
    value = shaped(caller, argument, value)
    if len(value.shape) < 2:
        raise UserError(f"{caller}: {argument} of shape {tuple(value.shape)} must be (batch, *space, channels); add the missing axes.")
    return value
