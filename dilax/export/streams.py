"""One step of a network that is fed in chunks, as a function of the chunk and of each array of the state, which `export` takes."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from dilax import arguments
from dilax.errors import UserError, shown
from dilax.export.ports import Port, is_name, random_array
from dilax.streaming import Streamable, in_order

_STEPS = 3  # after which the state of an example is taken


@dataclasses.dataclass(frozen=True)
class StreamStep:
    """One step of a stream as a function of arrays.

    Attributes:
        function: (chunk, *state) -> (output, *next state).
        inputs: The chunk, (batch, samples, ...), and the arrays of the state, "state_LAYER" each.
        outputs: Names of the results: "output", and "next_LAYER" for each array of the state.
        latency: By how many samples the outputs are late; 0 for a causal network.
    """

    function: Callable[..., tuple[jax.Array, ...]]
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    latency: int
    _initial: tuple[np.ndarray, ...] = dataclasses.field(repr=False)

    def initial(self, batch_size: int = 1) -> tuple[np.ndarray, ...]:
        """Return the state before the first sample.

        Args:
            batch_size: Number of sequences, if it may vary.
        """
        axes = [[axis for axis, size in enumerate(port.shape) if isinstance(size, str)] for port in self.inputs[1:]]
        return tuple(np.repeat(one, batch_size, axis[0]) if axis else one for one, axis in zip(self._initial, axes))

    def examples(self) -> list[tuple[np.ndarray, ...]]:
        """Return inputs on which an exported program is compared with the function, with the state after a few random chunks."""
        run, found = jax.jit(self.function), []
        chunk = self.inputs[0]
        for batch_size in (1, 3) if isinstance(chunk.shape[0], str) else (1,):
            rng, state = np.random.default_rng(0), self.initial(batch_size)
            shape = tuple(batch_size if isinstance(size, str) else size for size in chunk.shape)
            for _ in range(_STEPS):
                state = tuple(map(np.asarray, run(random_array(rng, shape, chunk.dtype), *state)[1:]))
            found.append((random_array(rng, shape, chunk.dtype), *state))
        return found


def stream_step(model: nn.Module, variables: VariableDict, *, chunk: int = 1, batch: int | str = 1, dtype: str = "float32") -> StreamStep:
    """Return one step of a model that is fed in chunks, to be exported as a program with an explicit state.

    Whoever runs the program keeps the state: it starts as `initial()`, and each step returns the next one. The samples of each ring are in
    order, as `dilax.streaming.in_order` makes them, so the program consists of plain convolutions.

    If the outputs are late, `state_clock_end` is the length of the sequence, which may be set at any time before it ends; feed `latency`
    zeros after the sequence to obtain the outputs that are still due.

    Args:
        model: A `dilax.streaming.Streamable`, such as `TCN`, `WaveNet` or a causal `ConvTasNet`.
        variables: Its variables, which become part of the program.
        chunk: Samples per step, a multiple of the strides of the model.
        batch: Sequences that are fed in parallel; a str such as "batch" if their number may be different in each run.
        dtype: Dtype of the chunks; a model that takes integer codes ignores it.

    Returns:
        The function, its ports and names for `export`, the initial state, and inputs to compare the program on.

    Raises:
        UserError: if the model cannot be fed in chunks, or not in chunks of that size.

    Example:
        >>> import dilax
        >>> from dilax.export import export, load_exported
        >>> model, series = dilax.models.create("tcn", kernel_size=3, features=(4, 4)), np.ones((1, 6, 2), np.float32)
        >>> variables = model.init(jax.random.key(0), series, train=False)
        >>> step = stream_step(model, variables, chunk=2)
        >>> [port.name for port in step.inputs][:3], step.outputs[:3]
        (['chunk', 'state_block0_conv1', 'state_block0_conv2'], ('output', 'next_block0_conv1', 'next_block0_conv2'))
        >>> data = export(step.function, step.inputs, outputs=step.outputs, examples=step.examples(), format="stablehlo")
        >>> run, state, outputs = load_exported(data, format="stablehlo"), step.initial(), []
        >>> for start in range(0, 6, 2):
        ...     output, *state = run(series[:, start : start + 2], *state)
        ...     outputs.append(output)
        >>> bool(np.allclose(np.concatenate(outputs, axis=1), model.apply(variables, series, train=False), atol=1e-5))
        True
    """
    caller = "stream_step"
    if not isinstance(model, Streamable):
        name = type(model).__name__ if isinstance(model, nn.Module) else shown(model)
        raise UserError(f"{caller}: {name} needs the whole sequence and cannot be fed in chunks; give a `dilax.streaming.Streamable`.")
    chunk = arguments.integer(caller, "chunk", chunk, minimum=1)
    if not is_name(batch):
        batch = arguments.integer(caller, "batch", batch, minimum=1)
    size = 1 if isinstance(batch, str) else batch
    # The apply of a Flax module has no static types.
    apply: Any = model.apply
    if conditions := apply(variables, size, method="stream_conditions"):
        raise UserError(
            f"{caller}: {type(model).__name__} needs {' and '.join(conditions)} with each chunk, which a step does not have; "
            "export a function of your own that calls its method stream."
        )
    sample = apply(variables, size, jnp.dtype(dtype), method="stream_input")
    states = [in_order(apply(variables, count, dtype=dtype, method="init_stream")) for count in (size, size + 1)]
    (paths, tree), (more, _) = (jax.tree_util.tree_flatten_with_path(state) for state in states)
    leaves = [leaf for _, leaf in paths]
    # A layer that does not look back keeps no samples.
    kept = [i for i, leaf in enumerate(leaves) if leaf.size]
    names = _names([paths[i][0] for i in kept])
    shapes = [tuple(None if a != b else a for a, b in zip(leaf.shape, other.shape)) for leaf, (_, other) in zip(leaves, more)]

    def function(chunk: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        given = dict(zip(kept, state))
        empty = (jnp.zeros([chunk.shape[0] if size is None else size for size in shape], leaf.dtype) for leaf, shape in zip(leaves, shapes))
        whole = [given.get(i, leaf) for i, leaf in enumerate(empty)]
        output, after = apply(variables, chunk, jax.tree.unflatten(tree, whole), method="stream")
        found = jax.tree.leaves(after)
        return output, *(found[i] for i in kept)

    ports = [Port("chunk", (batch, chunk, *sample.shape[2:]), sample.dtype.name)]
    named = [tuple(batch if size is None else size for size in shapes[i]) for i in kept]
    ports += [Port(f"state_{name}", shape, leaves[i].dtype.name) for name, shape, i in zip(names, named, kept)]
    initial = tuple(np.asarray(leaves[i]) for i in kept)
    # Here, so that a chunk of the wrong size is refused.
    jax.eval_shape(function, jax.ShapeDtypeStruct((size, *ports[0].shape[1:]), sample.dtype), *initial)
    latency = int(apply(variables, method="latency"))
    return StreamStep(function, tuple(ports), ("output", *(f"next_{name}" for name in names)), latency, initial)


def _names(paths: Sequence[Any]) -> list[str]:
    """Return an identifier for each path in a state: its layer and, if that keeps several arrays, which of them."""
    names: list[str] = []
    for path in paths:
        keys = [str(entry.key) for entry in path if hasattr(entry, "key")]  # the samples of a ring are all that it has
        name = re.sub(r"\W", "_", "_".join(keys), flags=re.ASCII)
        while name in names:
            name += "_"
        names.append(name)
    return names
