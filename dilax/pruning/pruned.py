"""A model with fewer channels: the same module, of whose parts some fields are changed."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import freeze
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.arguments import takes_train
from dilax.errors import UserError, did_you_mean, shown
from dilax.pruning.follow import plain_fields_of
from dilax.pruning.labels import Call
from dilax.pruning.selection import kept_count
from dilax.streaming import Streamable

# The fields of layers that follow from the channels of their outputs, and from those of their inputs where each is a group of its own.
_OUTPUTS, _GROUPS = "features", ("groups", "feature_group_count")


@checked()
class Pruned(Streamable):
    """A model in which fields of modules inside are changed, such as the `features` of its layers.

    `dilax.prune` makes it. Its variables have the paths of those of the model, and smaller shapes. It is initialised, applied, trained and
    exported as any other module, and fed in chunks if the model can be. It also has the fields of the model, such as `vocabulary`.

    Attributes:
        model: The model.
        changes: Path of a module, its names joined by slashes -> field -> value: a bool, an integer, a text or None.

    Raises:
        UserError: when it runs, if a module does not have a field, or the value does not fit the field; when it is initialised, if the
            model does not have a module.

    Example:
        >>> import dilax, jax.numpy as jnp
        >>> x, layer = jnp.ones((1, 9, 3)), dilax.blocks.ConvNormAct(8, (3,))
        >>> smaller = Pruned(layer, {"DilatedConv_0": {"features": 5}})
        >>> smaller.apply(smaller.init(jax.random.key(0), x, train=False), x, train=False).shape
        (1, 9, 5)
    """

    model: nn.Module
    changes: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        """Freeze the changes: a module is hashable only if its fields are."""
        if isinstance(self.changes, Mapping):
            plain = {path: dict(fields) if isinstance(fields, Mapping) else fields for path, fields in self.changes.items()}
            object.__setattr__(self, "changes", freeze(plain))
        super().__post_init__()

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        """Read a field of the model."""
        model = self.__dict__.get("model")
        return getattr(model, name) if name in getattr(model, "__dataclass_fields__", ()) else super().__getattr__(name)

    def setup(self) -> None:
        """Share the paths of the model."""
        nn.share_scope(self, self.model)

    def __call__(self, x: jax.Array, *, train: bool, **options: Any) -> Any:
        """Return what the model returns; `train` is not passed to a model that does not take it."""
        given = {"train": train} if takes_train(self.model) else {}
        model: Any = self.model
        called: set[str] = set()
        with nn.intercept_methods(_changing(self.changes, len(self.path), called)):
            y = model(x, **given, **options)
        if self.is_initializing():  # else a module may not be called, such as an auxiliary head
            for path in self.changes:
                if path not in called:
                    raise UserError(
                        f"Pruned: changes name the module {shown(path)}, which {type(model).__name__} does not have; give the path of one "
                        f"that it calls.{did_you_mean(str(path), called)}"
                    )
        return y

    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> Any:
        """Return the maps that the method `features` of the model returns, if it has one, as backbones do."""
        method = getattr(self.model, "features", None)
        if not callable(method):
            raise UserError(f"Pruned: {type(self.model).__name__} has no method `features`; call the model itself.")
        with nn.intercept_methods(_changing(self.changes, len(self.path), set())):
            return method(x, train=train, output_stride=output_stride)

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return an input of one sample of zeros."""
        return self._streamable().stream_input(batch_size, dtype)

    def stream_conditions(self, batch_size: int) -> dict[str, jax.Array]:
        """Return the further arguments that the model requires with that sample."""
        return self._streamable().stream_conditions(batch_size)

    def _streamable(self) -> Streamable:
        if not isinstance(self.model, Streamable):
            raise UserError(f"Pruned: {type(self.model).__name__} is not a dilax.streaming.Streamable; it cannot be fed in chunks.")
        return self.model


def unpruned(model: nn.Module) -> nn.Module:
    """Return the model of a `Pruned`, whose `__call__` says which arguments it takes; any other model is returned as it is."""
    return model.model if isinstance(model, Pruned) else model


def _changing(changes: Mapping[str, Mapping[str, Any]], depth: int, called: set[str]) -> Callable[..., Any]:
    """Return an interceptor that changes the fields of modules before they run, and notes their paths, which start after `depth` names.

    It is not a method, since those of modules are themselves intercepted.
    """

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.scope is not None:
            path = "/".join(context.module.path[depth:])
            called.add(path)
            for name, value in changes.get(path, {}).items():
                _check_change(context.module, path, name, value)
            change(context.module, changes.get(path, {}))
        return call(*args, **kwargs)

    return intercept


def _check_change(module: nn.Module, path: str, name: str, value: Any) -> None:
    """Refuse a change of a field that a module does not have, or to a value of another type."""
    fields = plain_fields_of(module)
    if name not in fields:
        raise UserError(
            f"Pruned: changes of {path!r} name the field {shown(name)}, and what can be changed of a {type(module).__name__} is "
            f"{', '.join(fields)}.{did_you_mean(str(name), fields)}"
        )
    old = fields[name]
    below = isinstance(value, int) and not isinstance(value, bool) and value < 1
    if not isinstance(value, bool | int | str | None) or (old is not None and type(value) is not type(old)) or below:
        like = "an integer of at least 1" if isinstance(old, int) and not isinstance(old, bool) else f"a value like {old!r}"
        raise UserError(f"Pruned: changes[{path!r}][{name!r}]={shown(value)} does not fit the field {name}; give {like}.")


def change(module: nn.Module, fields: Mapping[str, Any]) -> None:
    """Change fields of a module that is bound.

    Flax copies modules when it binds them, so that nobody else sees the change. A second module in its place would be called within the
    first, and whoever follows the calls of modules would see both.
    """
    for name, value in fields.items():
        if getattr(module, name) != value:
            object.__setattr__(module, name, value)


def changes_for(model: nn.Module, x: Any, calls: list[Call], removed: np.ndarray) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the fields to change, and the shapes of the variables that the smaller model creates.

    Fields that a model computes from the number of channels, such as whether a shortcut needs a convolution, keep their values.

    Args:
        model: The original model.
        x: Its input.
        calls: The modules that it calls.
        removed: Which labels are removed.
    """
    wanted = {call.path: _fields(call, removed) for call in calls if call.path}
    changes: dict[str, dict[str, Any]] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        path = "/".join(module.path) if module.scope is not None else ""
        if path in wanted:
            fields = plain_fields_of(module)
            differing = {name: value for name, value in wanted[path].items() if name in fields and fields[name] != value}
            change(module, differing)
            changes.setdefault(path, {}).update(differing)
        return call(*args, **kwargs)

    options: dict[str, Any] = {"train": False} if takes_train(model) else {}

    def create(x: Any) -> Any:
        # Only shapes are wanted: parameters may have been given another dtype than those that are created here.
        with jax.numpy_dtype_promotion("standard"), nn.intercept_methods(intercept):
            return model.init(jax.random.key(0), x, **options)

    created = jax.eval_shape(create, x)
    return {path: fields for path, fields in changes.items() if fields}, created


def _fields(call: Call, removed: np.ndarray) -> dict[str, Any]:
    """Return the fields of a module with fewer channels."""
    fields = dict(call.fields)
    if call.outputs is not None and fields.get(_OUTPUTS) == len(call.outputs):
        fields[_OUTPUTS] = kept_count(call.outputs, removed)
    for name in _GROUPS:
        if call.inputs is not None and fields.get(name) == len(call.inputs):
            fields[name] = kept_count(call.inputs, removed)
    return fields
