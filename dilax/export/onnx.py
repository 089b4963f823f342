"""ONNX, by jax2onnx: one node for each convolution, pooling and resize."""

import traceback
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from dilax import whole
from dilax.errors import UserError, quieted, reason
from dilax.export import onnx_operations, onnx_rewrites
from dilax.export.packages import required
from dilax.export.ports import Program, Run, check_agreement, checked_run, operation_of
from dilax.lowerings import use_lowering

# Average pooling with dilations came with 19; jax2onnx and onnxruntime are tested with this one.
OPSET = 21


def write(program: Program) -> bytes:
    """Return the bytes of a program that `onnx.checker` accepts, and that onnxruntime runs with the results of the function."""
    jax2onnx, onnx = required("jax2onnx", "onnx"), required("onnx", "onnx")
    required("onnxruntime", "onnx")
    onnx_operations.register()
    shapes = program.shapes()
    with use_lowering("lax"), whole.keep_whole():
        # Traced here, where jax2onnx has not replaced functions of JAX and Flax by its own.
        traced = jax.make_jaxpr(lambda *arrays: _without_inputs(program.function(*arrays), arrays))(*shapes)
    options: dict[str, Any] = dict(opset=OPSET, model_name="dilax", return_mode="proto")
    names = dict(input_names=[port.name for port in program.inputs], output_names=list(program.outputs))
    try:
        with quieted("onnx_ir"):  # which comments on values of jax2onnx, which a user cannot change
            model = jax2onnx.to_onnx(jaxpr_as_fun(traced), shapes, **options, **names)
    except UserError:
        raise
    except Exception as error:  # plugins of jax2onnx raise what they meet
        ints = "give ints instead of sizes that vary, or " if program.symbols else ""
        raise UserError(
            f"export: format 'onnx' cannot express {_operation(error)} ({reason(error)}); {ints}use format 'stablehlo'."
        ) from error
    onnx_rewrites.rewrite(model)
    onnx.helper.set_model_props(model, dict(program.metadata))
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    check_agreement(program, load(data), "onnx")
    return data


def _without_inputs(results: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the results that are inputs, or that are returned twice: a value of ONNX has one name."""
    seen, found = {id(one) for one in inputs}, []
    for result in results:
        found.append(jnp.copy(result) if id(result) in seen else result)
        seen.add(id(result))
    return tuple(found)


def _operation(error: BaseException) -> str:
    """Return in words where jax2onnx failed, which its messages need not say: the innermost equation that it was at."""
    equations: list[Any] = [frame.f_locals.get("eqn") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = next((one for one in reversed(equations) if hasattr(one, "primitive")), None)
    return "the function" if found is None else operation_of(str(found.primitive), str(found.source_info.name_stack))


def load(data: bytes) -> Run:
    """Return a function that runs the program in onnxruntime."""
    runtime = required("onnxruntime", "onnx")
    try:
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # those of onnxruntime have no common class
        raise UserError(f"load_exported: the data is not an ONNX program that onnxruntime runs ({reason(error)}).") from error
    names = [port.name for port in session.get_inputs()]
    return checked_run(len(names), "onnx", lambda arrays: session.run(None, dict(zip(names, arrays))))


def metadata(data: bytes) -> dict[str, str]:
    """Return the metadata that `write` has stored."""
    onnx = required("onnx", "onnx")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # google.protobuf.message.DecodeError, of a package that onnx brings
        raise UserError(f"read_metadata: the data is not an ONNX program ({reason(error)}); give that of format 'onnx'.") from error
    if not model.ir_version:  # no bytes at all are an empty message
        raise UserError("read_metadata: the data is not an ONNX program (it is empty); give that of format 'onnx'.")
    return {item.key: item.value for item in model.metadata_props}
