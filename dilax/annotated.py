"""Checks against annotations: of the fields of a module before it runs, and of the arguments of a function before it is called."""

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np

from dilax import arguments
from dilax.arguments import is_integer, plain, refuse_traced
from dilax.errors import UserError, shown

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])
# Fields that are probabilities of dropping a value.
_PROBABILITIES = ("dropout", "rate")


def checked(**limits: Any) -> Callable[[Class], Class]:
    """Decorate a Flax module, so that its fields are checked against their annotations before it runs.

    When it is created, numbers become those of Python, and lists become tuples, so that modules with equal fields are equal.

    Args:
        **limits: For fields by name, the words that a str may be, or the smallest integer, which is 1 by default.
    """

    def decorate(cls: Any) -> Any:
        own = inspect.get_annotations(cls).keys() - {"_", "parent", "name"}
        hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if name in own}
        created, setup = cls.__post_init__, cls.setup

        def convert(self: Any) -> None:
            plain_fields(self, hints)
            created(self)

        def check(self: Any) -> None:
            for name, hint in hints.items():
                if name in _PROBABILITIES:
                    arguments.probability(type(self).__name__, name, getattr(self, name))
                else:
                    _check(type(self).__name__, name, getattr(self, name), hint, limits.get(name))
            setup(self)

        cls.__post_init__, cls.setup = convert, check
        return cls

    return decorate


def plain_fields(module: nn.Module, names: Iterable[str]) -> None:
    """Set fields of a module to the values of Python that they stand for: numbers for scalars of any library, tuples for lists."""
    for name in names:
        object.__setattr__(module, name, _plain(getattr(module, name)))


def settled(module: nn.Module, name: str, value: Any) -> Any:
    """Return a field of a module that runs; one that is None is set to `value` first.

    What modules decide by their number of channels is thereby a field, which a pruned model keeps as it was.
    """
    if getattr(module, name) is None:
        object.__setattr__(module, name, value)
    return getattr(module, name)


def checked_call(**limits: Any) -> Callable[[Function], Function]:
    """Decorate a function, so that its arguments are checked against their annotations; scalars become those of Python.

    Args:
        **limits: For arguments by name, the words that a str may be, or the smallest integer, which is 1 by default.
    """

    def decorate(function: Function) -> Function:
        signature, name = inspect.signature(function), function.__name__

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            for argument, value in bound.arguments.items():
                hint = signature.parameters[argument].annotation
                bound.arguments[argument] = _check(name, argument, value, hint, limits.get(argument))
            return function(*bound.args, **bound.kwargs)

        return call  # pyright: ignore[reportReturnType]

    return decorate


def _options(hint: Any) -> list[Any]:
    """Return the types that an annotation allows; NumPy's names of types are aliases of others from Python 3.12 on."""
    hint = getattr(hint, "__value__", hint)
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]
    return [option for one in typing.get_args(hint) for option in _options(one)]


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else plain(value)


def _check(caller: str, name: str, value: Any, hint: Any, limit: Any) -> Any:
    """Check a value against an annotation, and return it in the type that the code computes with."""
    options = _options(hint)
    if name == "dtype":
        return arguments.dtype(caller, name, value)
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    minimum = limit if isinstance(limit, int) else 1
    if options in (_ARRAYS, [np.ndarray], [jax.Array]) or set(options) in _ARRAY_LIKE:
        return _array(caller, name, value)
    if any(typing.get_origin(option) is os.PathLike for option in options):
        arguments.path(caller, name, value)
        return value
    main, alone = typing.get_origin(options[0]) or options[0], len(options) == 1
    if main is tuple or (main is int and (alone or any(typing.get_origin(option) is tuple for option in options))):
        return _integers(caller, name, value, options, minimum)
    return _CHECKS[main](caller, name, value, options[0], limit) if alone and main in _CHECKS else value


def _integers(caller: str, name: str, value: Any, options: list[Any], minimum: int) -> Any:
    """Check an integer, a tuple of integers or a tuple of such tuples."""
    if options == [int]:
        return arguments.integer(caller, name, value, minimum=minimum)
    refuse_traced(caller, name, value)
    value, either = _plain(value), "an int or a tuple" if int in options else "a tuple"
    entries, *more = typing.get_args(options[-1])
    nested = entries is not int

    def allowed(one: Any) -> bool:
        return one >= minimum if is_integer(one) else nested and isinstance(one, tuple) and all(map(allowed, one))

    if not (all(map(allowed, value)) if isinstance(value, tuple) else int in options and is_integer(value) and value >= minimum):
        raise UserError(f"{caller}: {name}={shown(value)} must be {either} of ints of at least {minimum}, such as (1, 2, 4).")
    if more != [...] and isinstance(value, tuple) and len(value) != len(more) + 1:
        raise UserError(f"{caller}: {name}={shown(value)} must have {len(more) + 1} entries.")
    return value


def _array(caller: str, name: str, value: Any) -> Any:
    """Return an array; what is not one becomes one of NumPy."""
    if not isinstance(value, np.ndarray | jax.Array):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):
            raise UserError(f"{caller}: {name}={shown(value)} is not an array; give one of numbers.") from None
    return arguments.shaped(caller, name, value)


def _number(caller: str, name: str, value: Any, hint: Any, limit: Any) -> Any:
    arguments.number(caller, name, value)
    return plain(value)


def _word(caller: str, name: str, value: Any, hint: Any, limit: Any) -> str:
    return arguments.text(caller, name, value) if limit is None else arguments.word(caller, name, value, limit)


def _sequence(caller: str, name: str, value: Any, hint: Any, limit: Any) -> Any:
    """Check a sequence by the annotation of its entries; strings are not meant, though they are sequences."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise UserError(f"{caller}: {name}={shown(value)} is not a sequence; give a tuple or a list.")
    (entry,) = typing.get_args(hint)
    return tuple(_check(caller, f"{name}[{i}]", one, entry, limit) for i, one in enumerate(value))


def _mapping(caller: str, name: str, value: Any, hint: Any, limit: Any) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{caller}: {name}={shown(value)} is not a dict; give one.")
    return {key: _check(caller, f"{name}[{key!r}]", one, typing.get_args(hint)[1], limit) for key, one in value.items()}


_ARRAYS = [np.ndarray, jax.Array]
_ARRAY_LIKE = [set(_options(like)) for like in (np.typing.ArrayLike, jax.typing.ArrayLike)]
_CHECKS: dict[Any, Callable[[str, str, Any, Any, Any], Any]] = {
    bool: lambda caller, name, value, *_: arguments.flag(caller, name, value),
    float: _number,
    str: _word,
    nn.Module: lambda caller, name, value, *_: arguments.module(caller, name, value),
    Callable: lambda caller, name, value, *_: arguments.function(caller, name, value),
    Sequence: _sequence,
    Mapping: _mapping,
}
