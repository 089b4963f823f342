"""TFLite, for LiteRT on phones and microcontrollers, without TensorFlow: StableHLO of `jax.export`, converted by litert-converter."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export as jax_export
from jax.extend import core

from dilax import whole
from dilax.errors import UserError, reason
from dilax.export.packages import required
from dilax.export.ports import Program, Run, appended, appended_metadata, check_agreement, checked_run, operation_of, read_appended
from dilax.export.tflite_operations import MEANINGS
from dilax.lowerings import use_lowering

SIGNATURE = "serving_default"
STEPS = 4096  # of a loop, all of which are written out


def write(program: Program) -> bytes:
    """Return the bytes of a program, to which the metadata is appended, and that ai-edge-litert runs with the results of the function."""
    required("litert_converter", "tflite")
    required("ai_edge_litert.interpreter", "tflite")
    if program.symbols:
        raise UserError(f"export: format 'tflite' needs fixed sizes, and {program.symbols} vary; give ints.")
    with use_lowering("lax"), whole.replaced(MEANINGS), _places_are_layers():
        # For one platform that has no variants of operations of its own: the converter knows StableHLO alone.
        function = _without_loops(program.function, program.shapes())
        exported = jax_export.export(jax.jit(function), platforms=("tpu",))(*program.shapes())
        text = exported.mlir_module()
    names = [port.name for port in program.inputs]
    order = {"inputs": names, "outputs": list(program.outputs)}  # a signature does not keep it
    data = appended(_converted(text, names, program.outputs), order | {"metadata": dict(program.metadata)})
    check_agreement(program, load(data), "tflite")
    return data


def _without_loops(function: Callable[..., Any], shapes: Sequence[jax.ShapeDtypeStruct]) -> Callable[..., Any]:
    """Return a function that takes the steps of each scan one after another: the converter cannot express loops."""
    closed, results = jax.make_jaxpr(lambda *arrays: function(*arrays), return_shape=True)(*shapes)
    flat, structure = core.jaxpr_as_fun(_unrolled(closed)), jax.tree.structure(results)
    return lambda *arrays: jax.tree.unflatten(structure, flat(*arrays))


def _unrolled(value: Any, times: int = 1) -> Any:
    """Return a jaxpr, or a parameter of an equation, with every scan in it unrolled; what has none is returned as it is.

    Args:
        value: The jaxpr, or the parameter.
        times: How often the loops around it repeat it.
    """
    if isinstance(value, core.Jaxpr):  # in newer versions of JAX every closed one, too
        eqns = [_unrolled_equation(eqn, times) for eqn in value.eqns]
        return value if all(new is old for new, old in zip(eqns, value.eqns)) else value.replace(eqns=eqns)
    if isinstance(value, core.ClosedJaxpr):
        inner = _unrolled(value.jaxpr, times)
        return value if inner is value.jaxpr else value.replace(jaxpr=inner)
    if type(value) is tuple:
        parts = tuple(_unrolled(part, times) for part in value)
        return value if all(new is old for new, old in zip(parts, value)) else parts
    return value


def _unrolled_equation(eqn: core.JaxprEqn, times: int) -> core.JaxprEqn:
    is_scan = eqn.primitive.name == "scan"
    times *= eqn.params["length"] if is_scan else 1
    if times > STEPS:
        raise UserError(
            f"export: format 'tflite' cannot express loops, and one of {times} steps is too long to write out; use format 'onnx' or "
            "'stablehlo'."
        )
    params = {name: _unrolled(value, times) for name, value in eqn.params.items()} | ({"unroll": 0} if is_scan else {})
    return eqn if all(new is eqn.params[name] for name, new in params.items()) else eqn.replace(params=params)


@contextlib.contextmanager
def _places_are_layers() -> Iterator[None]:
    """Let JAX note for each operation the layer that it belongs to, for messages of the converter, and not the line of the code."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _converted(text: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Convert StableHLO. These calls of litert-converter are not documented: they are those of its own front ends."""
    api = required("litert_converter.converter_api_ext", "tflite")
    ir, passes = required("litert_converter.mlir.ir", "tflite"), required("litert_converter.mlir.passmanager", "tflite")
    utilities = required("litert_converter.tools.model_utils.transform", "tflite")
    with utilities.get_ir_context() as context:
        api.prepare_mlir_context(context)
        module = ir.Module.parse(text)
        api.set_signature(module.operation, SIGNATURE, list(inputs), list(outputs))
        try:
            api.run_convert_to_tfl_passes(module, passes.PassManager(), api.ConvertToTFLConfig())
            return bytes(api.export_flatbuffer_to_bytes(module.operation))
        except Exception as error:  # those of MLIR and of the bindings
            found = re.search(r"operation '(?:\w+\.)?(\w+)'", str(error))
            place = re.search(r'loc\("(.*)/.*?"\)', str(error))
            loops = "with a loop of unknown length, " * ("stablehlo.while" in text)
            operation = operation_of(found[1], place[1] if place else "") if found else f"the function ({loops}{reason(error)})"
            raise UserError(f"export: format 'tflite' cannot express {operation}; use format 'onnx' or 'stablehlo'.") from error


def load(data: bytes) -> Run:
    """Return a function that runs the program in ai-edge-litert."""
    litert = required("ai_edge_litert.interpreter", "tflite")
    try:
        interpreter = litert.Interpreter(model_content=data)
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner(SIGNATURE)
        signature = interpreter.get_signature_list()[SIGNATURE]
    except Exception as error:  # ValueError, RuntimeError and KeyError, among others
        raise UserError(f"load_exported: the data is not a TFLite program that LiteRT runs ({reason(error)}).") from error
    order = read_appended(data)
    names, results = (order.get(kind) or signature[kind] for kind in ("inputs", "outputs"))

    def run(arrays: list[Any]) -> list[Any]:
        found = runner(**dict(zip(names, arrays)))
        return [found[name] for name in results]

    details = runner.get_input_details()  # the runner would change the sizes to those of any array
    return checked_run(len(names), "tflite", run, [tuple(map(int, details[name]["shape"])) for name in names])


def metadata(data: bytes) -> dict[str, str]:
    """Return the metadata that `write` has stored."""
    return appended_metadata(data)
