"""What goes into an exported program and comes out of it: names, shapes with sizes that may vary, and dtypes."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from dilax.arguments import is_integer
from dilax.errors import UserError, reason, shown
from dilax.lowerings import use_lowering

Run = Callable[..., tuple[np.ndarray, ...]]
_APPENDED = "metadata.json"
# Largest difference of a result from that of the function, as a fraction of its range.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Port:
    """One input of an exported program.

    Attributes:
        name: What the program calls it, an identifier.
        shape: Its sizes. A str names a size that may be different in each run, such as "batch"; the same name is the same size.
        dtype: Name of its dtype, such as "float32".

    Example:
        >>> Port("image", ("batch", 224, 224, 3), "float32").shape
        ('batch', 224, 224, 3)
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to export, checked.

    Attributes:
        function: From arrays to a tuple of arrays.
        inputs: Its inputs.
        outputs: Names of its results.
        metadata: Texts to store in the file.
        examples: Inputs to compare the results on; if empty, random ones are drawn.
    """

    function: Callable[..., tuple[jax.Array, ...]]
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    examples: tuple[tuple[np.ndarray, ...], ...] = ()

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the sizes that may vary, in the order in which they appear."""
        return tuple(dict.fromkeys(size for port in self.inputs for size in port.shape if isinstance(size, str)))

    def shapes(self, sizes: Mapping[str, Any] | None = None) -> list[jax.ShapeDtypeStruct]:
        """Return the shapes of the inputs, with sizes for the names, or else with symbolic sizes of `jax.export`."""
        if sizes is None:
            scope = jax_export.SymbolicScope()
            sizes = {name: jax_export.symbolic_shape(name, scope=scope)[0] for name in self.symbols}
        known: Mapping[str, Any] = sizes
        return [
            jax.ShapeDtypeStruct(tuple(known[size] if isinstance(size, str) else size for size in port.shape), jnp.dtype(port.dtype))
            for port in self.inputs
        ]

    def samples(self) -> list[dict[str, int]]:
        """Return sizes to try the program with: small ones for a first axis, and odd and even ones for others."""
        first = {port.shape[0] for port in self.inputs if port.shape}
        if not self.symbols:
            return [{}]
        count = 2 if first.issuperset(self.symbols) else 3
        places = list(enumerate(self.symbols))
        return [{name: (1, 3, 2)[n] if name in first else (64, 75, 97)[(n + i) % 3] for i, name in places} for n in range(count)]

    def cases(self) -> Iterator[tuple[dict[str, int], list[np.ndarray]]]:
        """Yield inputs to compare the results on, with the sizes that they have for the names."""
        for inputs in self.examples:
            yield _sizes_of(self.inputs, inputs), list(inputs)
        for sizes in () if self.examples else self.samples():
            rng = np.random.default_rng(0)
            yield sizes, [random_array(rng, one.shape, one.dtype) for one in self.shapes(sizes)]


def checked_program(function: Any, inputs: Any, outputs: Any, metadata: Any, examples: Any = ()) -> Program:
    """Check the arguments of `export`.

    Raises:
        UserError: if one of them is invalid, the function cannot be traced, or it does not return what `outputs` names.
    """
    if not callable(function):
        raise UserError(
            f"export: function={shown(function)} is not a function; give one of arrays, such as lambda x: model.apply(variables, x, "
            "train=False)."
        )
    ports = tuple(_checked_port(port) for port in _sequence("inputs", inputs))
    names = tuple(_checked_name("outputs", name) for name in _sequence("outputs", outputs))
    all_names = [*(port.name for port in ports), *names]
    if twice := sorted({name for name in all_names if all_names.count(name) > 1}):
        raise UserError(f"export: {shown(twice[0])} names two inputs or outputs; give each a name of its own.")
    if not isinstance(metadata, Mapping) or not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise UserError(f"export: metadata={shown(metadata)} is not a mapping from str to str; give one, such as {{'author': 'me'}}.")
    program = Program(lambda *arrays: _as_tuple(function(*arrays)), ports, names, dict(metadata), _checked_examples(ports, examples))
    _check_results(program)
    return program


def _sequence(argument: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple) or not value:
        example = "[Port('x', (1, 32, 32, 3), 'float32')]" if argument == "inputs" else "('output',)"
        raise UserError(f"export: {argument}={shown(value)} is not a list with an entry or more; give one, such as {example}.")
    return tuple(value)


def is_name(value: Any) -> bool:
    """Return whether a value can be the name of an input, an output or a size."""
    return isinstance(value, str) and value.isidentifier() and value.isascii()


def _checked_name(argument: str, name: Any) -> str:
    if not is_name(name):
        raise UserError(f"export: {argument} has the name {shown(name)}, which is not an identifier; use letters, digits and underscores.")
    return name


def _checked_port(port: Any) -> Port:
    if not isinstance(port, Port):
        raise UserError(f"export: inputs has {shown(port)}, which is not a Port; give one, such as Port('x', (1, 32, 32, 3), 'float32').")
    _checked_name("inputs", port.name)
    shape: tuple[Any, ...] = tuple(port.shape) if isinstance(port.shape, list | tuple) else (None,)
    for size in shape:
        if not is_name(size) and not (is_integer(size) and int(size) >= 1):
            raise UserError(
                f"export: input {port.name!r} has shape {shown(port.shape)}; give a tuple of ints of at least 1, or names such as 'batch'."
            )
    try:
        dtype = jnp.dtype(port.dtype)
    except TypeError:
        raise UserError(f"export: input {port.name!r} has dtype {shown(port.dtype)}; give one such as 'float32'.") from None
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        narrow = jax.dtypes.canonicalize_dtype(dtype).name
        raise UserError(f"export: input {port.name!r} has dtype {dtype.name}, which JAX computes in {narrow}; give {narrow!r}.")
    return Port(port.name, tuple(size if isinstance(size, str) else int(size) for size in shape), dtype.name)


def _as_tuple(results: Any) -> tuple[jax.Array, ...]:
    return tuple(results) if isinstance(results, list | tuple) else (results,)


def _check_results(program: Program) -> None:
    def results(sizes: Mapping[str, int] | None) -> tuple[Any, ...]:
        with use_lowering("lax"):
            return jax.eval_shape(lambda *arrays: program.function(*arrays), *program.shapes(sizes))

    try:
        found = results(None)
    except Exception as error:
        if not program.symbols:
            raise
        results(program.samples()[0])  # if this fails as well, the sizes that vary are not the reason
        raise UserError(
            f"export: the function cannot be traced for sizes {program.symbols} that vary ({reason(error)}); give ints for some of them."
        ) from error
    if not all(hasattr(one, "shape") and hasattr(one, "dtype") for one in found):
        raise UserError(f"export: the function returns {shown(found)}; let it return an array, or a tuple of arrays.")
    if len(found) != len(program.outputs):
        raise UserError(
            f"export: the function returns {len(found)} arrays, and outputs={program.outputs} has {len(program.outputs)} names; "
            "give one for each."
        )


def _checked_examples(ports: Sequence[Port], examples: Any) -> tuple[tuple[np.ndarray, ...], ...]:
    if isinstance(examples, str) or not isinstance(examples, list | tuple):
        raise UserError(f"export: examples={shown(examples)} is not a list; give one of tuples with an array for each input.")
    checked = []
    for one in examples:
        if not isinstance(one, list | tuple) or len(one) != len(ports):
            raise UserError(f"export: examples has {shown(one)}, which is not a tuple with an array for each of {len(ports)} inputs.")
        arrays = tuple(map(np.asarray, one))
        for port, array in zip(ports, arrays):
            if array.dtype != port.dtype or len(array.shape) != len(port.shape):
                raise UserError(f"export: examples has {shown(array)} for the input {port.name!r}, which is {port.dtype} {port.shape}.")
        _sizes_of(ports, arrays)
        checked.append(arrays)
    return tuple(checked)


def _sizes_of(ports: Sequence[Port], arrays: Sequence[np.ndarray]) -> dict[str, int]:
    """Return the sizes that arrays have for the names of sizes; refuse arrays of other shapes."""
    sizes: dict[str, int] = {}
    for port, array in zip(ports, arrays):
        for size, given in zip(port.shape, array.shape):
            if given != (sizes.setdefault(size, given) if isinstance(size, str) else size):
                raise UserError(f"export: examples has {shown(array)} for the input {port.name!r}, which is {port.dtype} {port.shape}.")
    return sizes


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return an array that is standard normal, or 0 and 1, which are valid as symbols of any vocabulary of two or more."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return np.asarray(rng.normal(size=shape) if inexact else rng.integers(0, 2, shape), dtype)


def operation_of(name: str, scopes: str) -> str:
    """Return in words which operation of which layer a format cannot express.

    Args:
        name: Name of the operation.
        scopes: The scopes of JAX that it is in, with slashes between them: the layers of Flax, and transformations such as "jit(f)".
    """
    layer = "/".join(scope for scope in scopes.split("/") if scope and "(" not in scope)
    return f"the operation {name!r}{f' of {layer}' if layer else ''}"


def check_agreement(program: Program, run: Run, fmt: str) -> None:
    """Compare an exported program with the function, on its examples or on random inputs of several sizes.

    Raises:
        UserError: if a result differs by more than `TOLERANCE` of its range, or the engine of the format does not run the program.
    """
    expected_of = jax.jit(lambda *arrays: program.function(*arrays))
    for sizes, inputs in program.cases():
        expected = [np.asarray(one) for one in expected_of(*inputs)]
        try:
            results = run(*inputs)
        except UserError as error:
            raise UserError(f"export: the program in format {fmt!r} does not run at sizes {dict(sizes)}: {error}") from error
        for name, actual, wanted in zip(program.outputs, results, expected, strict=True):
            if wrong := _disagreement(actual, wanted):
                at = f" at sizes {dict(sizes)}" if sizes else ""
                hint = "give ints instead of sizes that vary, or " if sizes else ""
                raise UserError(
                    f"export: format {fmt!r} does not keep the meaning of the function: output {name!r} {wrong}{at}; {hint}use format "
                    "'stablehlo'."
                )


def _disagreement(actual: np.ndarray, wanted: np.ndarray) -> str:
    """Return in which way a result is not what is wanted, in words; "" if it is."""
    if (actual.shape, actual.dtype) != (wanted.shape, wanted.dtype):
        return f"is {shown(actual)} and should be {shown(wanted)}"
    error = _difference(actual, wanted)
    return "" if error <= TOLERANCE else f"differs by {error:.1e} of its range"


def _difference(actual: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference as a fraction of the range of what is wanted; infinity for other places of NaN."""
    a, b = actual.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    scale = np.ptp(b[finite]) or np.abs(b[finite]).max() or 1.0
    return float(np.nan_to_num(np.abs(a[finite] - b[finite]), nan=np.inf).max() / scale)


def checked_run(count: int, fmt: str, run: Callable[..., Any], shapes: Sequence[tuple[int, ...]] | None = None) -> Run:
    """Return a function that runs a loaded program on arrays, and refuses arrays that do not fit it.

    Args:
        count: Number of inputs.
        fmt: The format, for messages.
        run: Function from a list of NumPy arrays to a sequence of arrays.
        shapes: Shapes of the inputs, for an engine that does not check them.
    """

    def call(*arrays: Any) -> tuple[np.ndarray, ...]:
        if len(arrays) != count:
            raise UserError(f"load_exported: the program takes {count} arrays, got {len(arrays)}; give one for each input.")
        given = [np.asarray(array) for array in arrays]
        words = ", ".join(map(shown, given))
        if shapes is not None and (wrong := [one.shape for one in given]) != list(shapes):
            raise UserError(f"load_exported: the {fmt} program does not take {words}: shapes {wrong} are not {list(shapes)}.")
        try:
            return tuple(np.asarray(one) for one in run(given))
        except Exception as error:  # each engine has exceptions of its own
            raise UserError(f"load_exported: the {fmt} program does not take {words}: {reason(error)}.") from error

    return call


def appended(data: bytes, content: Mapping[str, Any]) -> bytes:
    """Append a ZIP archive with JSON to a FlatBuffer, whose readers ignore it: where TFLite keeps the files that belong to a model."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # A fixed date, so that the same program gives the same bytes.
        archive.writestr(zipfile.ZipInfo(_APPENDED, (1980, 1, 1, 0, 0, 0)), json.dumps(content))
    return data + file.getvalue()


def read_appended(data: bytes) -> dict[str, Any]:
    """Return what `appended` has appended; {} if that is nothing."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return json.loads(archive.read(_APPENDED)) if _APPENDED in archive.namelist() else {}
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(
            f"load_exported: the archive at the end of the data is damaged ({reason(error)}); export the program again."
        ) from error


def appended_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata that `appended` has appended.

    Raises:
        UserError: if there is none.
    """
    content = read_appended(data)
    if "metadata" not in content:
        raise UserError("read_metadata: the data is not a program that dilax.export wrote; give one of that format.")
    return content["metadata"]
