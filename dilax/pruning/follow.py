"""The labels of channels, carried through a model."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.ad_checkpoint import checkpoint_name

from dilax.arguments import takes_train
from dilax.blocks import Dropout, Norm
from dilax.errors import UserError, reason
from dilax.modules import DilatedConv
from dilax.pruning import operations
from dilax.pruning.labels import INPUT, Axes, Call, Channels, Value, leaves, positions
from dilax.receptive_fields.jaxprs import Literal, called_jaxpr, scan_parts

_MARK = "dilax-channels:"


def follow(model: nn.Module, variables: Mapping[str, Any], x: Any, labels: Mapping[str, Axes], *, caller: str = "prune") -> Channels:
    """Follow the channels of a model's variables, in inference, and also in training if some of them are used only there.

    Args:
        model: A Flax module.
        variables: Its variables, or their shapes.
        x: Its input; only the shape and dtype are used.
        labels: The labels of the axes of each variable, by its path.
        caller: Name that error messages start with.

    Returns:
        What is coupled. The products are those of inference.

    Raises:
        UserError: if the model does not run.
    """
    channels = Channels()
    for path, axes in labels.items():
        if path.endswith("/kernel_scale"):  # the lengths of weight normalisation, which is left out below
            channels.couple(axes[0], labels[path.removesuffix("_scale")][-1], "")
    unused = _Walk(channels, caller).follow(model, variables, x, labels, train=False)
    if unused and takes_train(model):  # such as an auxiliary head
        products = list(channels.products)
        _Walk(channels, caller).follow(model, variables, x, labels, train=True)
        channels.products = products
    return channels


def multiply_adds_of(fn: Callable[..., Any], variables: Any, *data: Any) -> int:
    """Return the multiply-adds of the convolutions and matrix products of `variables` with `data` in a function.

    Args:
        fn: Takes `variables` and `data`; it is traced, not computed.
        variables: A pytree of arrays or shapes.
        *data: Pytrees of arrays or shapes; leaves that are neither are constants.
    """
    leaves, structure = jax.tree.flatten(data)
    arrays = {number: leaf for number, leaf in enumerate(leaves) if hasattr(leaf, "shape")}

    def run(variables: Any, arrays: dict[int, Any]) -> Any:
        return fn(variables, *structure.unflatten(arrays.get(number, leaf) for number, leaf in enumerate(leaves)))

    closed = jax.make_jaxpr(run)(variables, arrays)
    inputs = [Value(positions(leaf.shape), variables=True) for leaf in jax.tree.leaves(variables)]
    inputs += [Value(positions(leaf.shape), data=True) for leaf in arrays.values()]
    channels = Channels()
    _Walk(channels, "multiply_adds").run(closed.jaxpr, closed.consts, inputs)
    return sum(product.multiply_adds for product in channels.products)


class _Walk:
    """One pass through the jaxpr of a model."""

    def __init__(self, channels: Channels, caller: str) -> None:
        self.channels, self.caller = channels, caller

    def follow(self, model: nn.Module, variables: Any, x: Any, labels: Mapping[str, Axes], *, train: bool) -> bool:
        """Note what one run of a model couples; return whether it leaves out some of the variables."""

        def run(variables: Any, x: Any) -> Any:
            options: dict[str, Any] = {"train": train} if takes_train(model) else {}
            rngs = {name: jax.random.key(0) for name in ("params", "dropout")} if train else None
            with nn.intercept_methods(self._intercept):
                y: Any = model.apply(variables, x, **options, rngs=rngs, mutable=["batch_stats"] if train else False)
            return y[0] if train else y

        try:
            closed = jax.make_jaxpr(run)(dict(variables), x)
        except FlaxError as error:
            raise UserError(
                f"{self.caller}: {type(model).__name__} does not run with these variables and this x ({reason(error)}); give all "
                "collections of its variables, and an input of the shape that it takes."
            ) from None
        *outer, last = positions(x.shape)
        start = Value((*outer, None if last is None else np.full_like(last, INPUT)), data=True)
        inputs = [Value(labels[path], variables=True) for path in leaves(variables)]
        for value in self.run(closed.jaxpr, closed.consts, [*inputs, start]):
            for axis in value.axes:
                self.channels.lock(axis)
        used = {var for eqn in closed.jaxpr.eqns for var in eqn.invars if not isinstance(var, Literal)}
        return not used.issuperset(closed.jaxpr.invars)

    def _intercept(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Mark the input and the output of a module; an interceptor for `flax.linen.intercept_methods`."""
        module = context.module
        if context.method_name != "__call__" or not args or not hasattr(args[0], "shape"):
            return call(*args, **kwargs)
        if isinstance(module, Dropout | nn.Dropout):
            return args[0]
        # The lengths of kernels are sums over their input channels. They are adjusted afterwards, so a kernel may be followed as it is.
        normalised = isinstance(module, DilatedConv) and module.weight_norm
        if normalised:
            object.__setattr__(module, "weight_norm", False)
        if isinstance(module, Norm):  # whose statistics in training would only be updated
            kwargs = {**kwargs, "train": False}
        number = len(self.channels.calls)
        self.channels.calls.append(Call("/".join(module.path)))
        y = call(checkpoint_name(args[0], f"{_MARK}{number}:inputs"), *args[1:], **kwargs)
        if normalised:
            object.__setattr__(module, "weight_norm", True)
        self.channels.calls[number].fields = plain_fields_of(module)  # as they are in the call: see `Pruned`
        return checkpoint_name(y, f"{_MARK}{number}:outputs") if hasattr(y, "shape") else y

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Follow a jaxpr from its inputs to its outputs."""
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(_constant, consts), *inputs], strict=True))

        def read(var: Any) -> Value:
            return _constant(var.val) if isinstance(var, Literal) else env[var]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._equation(eqn, [read(var) for var in eqn.invars])))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, operands)
        if name == "cond":
            branches = [self.run(branch.jaxpr, branch.consts, operands[1:]) for branch in eqn.params["branches"]]
            return [self._alike(results) for results in zip(*branches)]
        inner = None if name in operations.RULES else called_jaxpr(eqn)
        if inner is not None:
            jaxpr = getattr(inner, "jaxpr", inner)
            return self.run(jaxpr, getattr(inner, "consts", ()), operands[len(operands) - len(jaxpr.invars) :])
        results = operations.apply(self.channels, eqn, operands)
        if name == "name" and eqn.params["name"].startswith(_MARK) and results[0]:
            number, _, what = eqn.params["name"].removeprefix(_MARK).partition(":")
            setattr(self.channels.calls[int(number)], what, results[0][-1])
        variables, data = any(operand.variables for operand in operands), any(operand.data for operand in operands)
        return [Value(axes, variables, data) for axes in results]

    def _scan(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """Follow one iteration; what is carried has the same channels before and after it."""
        (consts, carried), body, length = scan_parts(eqn), eqn.params["jaxpr"], eqn.params["length"]
        for value in operands[consts + carried :]:
            self.channels.lock(value.axes[0], "a loop runs over them")
        slices = [value._replace(axes=value.axes[1:]) for value in operands[consts + carried :]]
        carry, before = operands[consts : consts + carried], len(self.channels.products)
        # A second iteration knows what the first one has carried to it.
        for _ in range(2):
            del self.channels.products[before:]
            outputs = self.run(body.jaxpr, body.consts, [*operands[:consts], *carry, *slices])
            carry = [self._alike(pair) for pair in zip(carry, outputs)]
        products = self.channels.products
        products[before:] = [product._replace(multiply_adds=product.multiply_adds * length) for product in products[before:]]
        return [*carry, *(value._replace(axes=(*positions((length,)), *value.axes)) for value in outputs[carried:])]

    def _alike(self, values: Sequence[Value]) -> Value:
        why = "a loop or a branch combines them with values that are not channels"
        axes = tuple(self.channels.merge(axis, why) for axis in zip(*(value.axes for value in values)))
        return Value(axes, any(value.variables for value in values), any(value.data for value in values))


def _constant(value: Any) -> Value:
    if jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key):
        return Value(positions(value.shape))
    array = np.asarray(value)
    same = array.size > 0 and bool((array == array.ravel()[0]).all())
    return Value((None,) * array.ndim if same else positions(array.shape))


def plain_fields_of(module: nn.Module) -> dict[str, Any]:
    """Return the fields of a module that hold a bool, an integer, a text or None."""
    fields = (field.name for field in dataclasses.fields(module) if field.init and field.name not in ("parent", "name"))
    values = {name: getattr(module, name) for name in fields}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | str | None)}
