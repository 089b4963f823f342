"""Wrong arguments of everything public, found by walking the public lists: a result, or one line that says what to change; nothing else.

What an argument may be follows from its annotation, so that a name or a field added tomorrow is tried, too. `test_arguments.py` tests the
operations in more detail: which values are refused, and what the message shows of them.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import with_slow
from test_arguments import CASES, INTERNAL

import dilax
from dilax import blocks, models, plots, streaming
from dilax.errors import UserError, shown

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
PUBLIC = {
    name: getattr(module, name)
    for module in (plots, streaming, blocks, models, dilax)
    for name in module.__all__
    if callable(getattr(module, name))
}
MODULES = {name: one for name, one in PUBLIC.items() if isinstance(one, type) and issubclass(one, nn.Module)}
NOT_NUMBERS = ("3", float("nan"), True, object(), [2], {}, (), 1j, np.array([2, 3]), jnp.ones((2, 2)))
# Values that are wrong wherever an annotation has these types.
WRONG: dict[Any, tuple[Any, ...]] = {
    bool: ("no", 2, [], {}, object(), np.array([True, False])),
    int: (-1, 2.5, np.float32(2), *NOT_NUMBERS),
    float: (float("inf"), *NOT_NUMBERS),
    str: (3, [], (), {}, object(), np.array(["lax"])),
    tuple: (0.5, (1.5,), ("1",), ("a", "b"), (-1,), (True,), {}, object()),
    Callable: (3, "text", None, {}),
    None: ("text", None, 3, 2.5, -1, True, {}, [], (), object(), [[1.0], [1.0, 2.0]], [None], np.zeros(0), RNG.normal(size=(2, 3, 4, 5, 6, 7))),
}  # fmt: skip


def kinds(hint: Any) -> list[Any]:
    """The keys of WRONG whose values are wrong for an annotation; [None] if any value may be right."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    options = [option for option in options if option is not type(None)]
    known = [typing.get_origin(option) or option for option in options]
    if any(one not in WRONG for one in known):
        return [None]
    return known if len(known) == 1 else []


def refusal(call: Callable[[], Any]) -> str | None:
    """The message of a UserError; None if there is a result. Other exceptions are failures, and so are several lines."""
    try:
        call()
    except UserError as error:
        text = str(error)
        return text if "\n" not in text and len(text) < 1000 else f"FAILED: {len(text)} characters, {text[:80]!r}"
    except Exception as error:
        return f"FAILED: {type(error).__name__} {str(error)[:90]!r}"
    return None


def field_hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.name not in ("parent", "name", "_")}


def made(cls: Any, **fields: Any) -> nn.Module:
    """A module with some fields, and the smallest values for those that have no default."""
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    smallest: dict[str, Any] = {"kernel_size": 3 if "Causal" in cls.__name__ else (3,), "dilations": (1,), "rate": 0.1}
    return cls(**{name: smallest.get(name, 1) for name in required if name != "_"} | fields)


def traced(module: nn.Module) -> None:
    method: Any = getattr(type(module), "__call__" if "__call__" in dir(type(module)) else "features")
    train: dict[str, Any] = {"train": False} if "train" in inspect.signature(method).parameters else {}
    jax.eval_shape(lambda x: module.init(KEY, x, **train, method=method), jnp.ones((1, 9, 4)))


FIELDS = [(name, field) for name, cls in MODULES.items() for field in field_hints(cls)]
# The first field of each module, and each kind of field in one of them; the others, which most check by the same function, with -m slow.
KEPT = {(field, str(field_hints(MODULES[name])[field])): (name, field) for name, field in reversed(FIELDS)}
KEPT |= {(name, ""): (name, field) for name, field in reversed(FIELDS)}


@pytest.mark.parametrize(("name", "field"), with_slow(FIELDS, kept=KEPT.values()))
def test_wrong_fields_of_modules(name, field):
    cls, failures = MODULES[name], []
    hint = field_hints(cls)[field]
    for kind in kinds(hint):
        for value in WRONG[kind]:
            if value is None and kind is not None and type(None) in typing.get_args(hint):
                continue
            said = refusal(lambda value=value: traced(made(cls, **{field: value})))
            # Without a kind, a value may be right.
            if (said or "").startswith("FAILED") or (kind is not None and (said is None or field not in said)):
                failures.append(f"{shown(value)}: {said}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", MODULES)
def test_scalars_of_other_libraries_and_lists_make_equal_modules(name):
    cls = MODULES[name]
    expected = made(cls)
    for convert in (np.int64, np.array, jnp.asarray):

        def converted(value: Any, convert: Any = convert) -> Any:
            if isinstance(value, tuple):
                return [converted(one) for one in value]
            return convert(value) if (type(value) in (bool, int) and convert is not np.int64) or type(value) is int else value

        fields = {field: converted(getattr(expected, field)) for field in field_hints(cls)}
        assert made(cls, **fields) == expected, convert
        assert hash(made(cls, **fields)) == hash(expected)


IMAGE, SERIES = RNG.normal(size=(6, 5, 3)).astype(np.float32), RNG.normal(size=(2, 9, 4)).astype(np.float32)
MASK = RNG.integers(0, 2, (6, 5)).astype(np.uint8)
BOX = np.array([[1.0, 0.0, 4.0, 5.0]])
VOLUME_MASK = np.random.default_rng(6).integers(0, 2, (6, 5, 3)).astype(np.uint8)
TCN = models.TCN(out_features=2, kernel_size=2, features=(3,))
TCN_VARIABLES = jax.jit(lambda: TCN.init(KEY, SERIES[..., :2], train=False))()
STATE = TCN.apply(TCN_VARIABLES, 2, method="init_stream")
BLOCK = blocks.ConvNormAct(3, (3,))
BLOCK_VARIABLES = jax.jit(lambda: BLOCK.init(KEY, SERIES, train=False))()
SPEC = dilax.DataSpec("table", (9, 2), ("warm", "wet"), 10, mean=(0.0, 0.0), std=(1.0, 1.0))
RUN = dilax.Inference(TCN, TCN_VARIABLES, SPEC, task="sequence_prediction")
RING = streaming.new_ring(2, 3, (4,), jnp.float32)
PLAN = dilax.ConvPlan(1, (8,), 2, 2, (3,), (1,), ((2, 2),), (2,), 1, "float32")


def square(x: Any) -> Any:
    return x * x


def bound(method: Callable[..., Any], *arrays: Any) -> Callable[..., Any]:
    return lambda **options: method(*arrays, **options)


# A valid call of every public function that test_arguments.py does not have.
CALLS: dict[str, dict[str, Any]] = {
    "tiled": {"fn": square, "tile": (4,), "batch_size": 2, "reduce": "mean", "check": True},
    "receptive_field": {"fn": square, "x": SERIES},
    "effective_receptive_field": {"fn": square, "x": SERIES, "key": KEY, "samples": 2},
    "suggest_dilations": {"kernel_size": 3, "target_size": 17, "layers": 3},
    "autotune": {"what": PLAN, "measure": "forward", "repeats": 1, "table": False},
    "fold_batch_norm": {"model": BLOCK, "variables": BLOCK_VARIABLES, "x": SERIES},
    "prune": {
        "model": TCN,
        "variables": TCN_VARIABLES,
        "x": SERIES[..., :2],
        "ratio": 0.5,
        "flops": None,
        "by": "magnitude",
        "multiple_of": 1,
    },
    "profile": {"model": BLOCK, "variables": BLOCK_VARIABLES, "x": SERIES, "repeats": 1},
    "multiply_adds": {"model": BLOCK, "variables": BLOCK_VARIABLES, "x": SERIES},
    "load": {"folder": "nowhere"},
    "save_weights": {"variables": TCN_VARIABLES, "path": "weights.safetensors"},
    "read_weights": {"path": "nowhere.safetensors"},
    "load_weights": {"source": "torchvision:resnet18", "path": "nowhere.pth", "fields": {}},
    "check_causal": {"fn": square, "x": SERIES, "cuts": (2, 3)},
    "check_streamable": {"model": TCN, "variables": TCN_VARIABLES, "x": SERIES[..., :2], "chunks": (3, 2), "tolerance": 1e-3},
    "end_stream": {"state": STATE},
    "output_fields": {"name": "tcn"},
    "symbol_fields": {"name": "tcn"},
    "activation": {"name": "relu"},
    "masked": {"x": jnp.asarray(SERIES), "mask": jnp.ones((2, 9), bool)},
    "class_bars": {"values": [0.5, 0.2], "class_names": ("a", "b"), "label": "IoU"},
    "confusion_matrix": {"counts": np.eye(2), "class_names": ("a", "b")},
    "detection_grid": {
        "images": IMAGE[None],
        "true_boxes": BOX[None],
        "true_labels": [[1]],
        "boxes": BOX[None],
        "labels": [[0]],
        "scores": [[0.5]],
        "class_names": ("a", "b"),
        "titles": ("x",),
    },
    "detection_overlay": {"image": IMAGE, "boxes": BOX, "labels": [1], "scores": [0.5], "class_names": ("a", "b")},
    "precision_recall": {"precision": np.full((5, 2), 0.5), "class_names": ("a", "b"), "label": "at 0.5"},
    "dilation_stacks": {"kernel_size": 3, "stacks": ((1, 1), (1, 2))},
    "dilation_taps": {"kernel_size": 3, "dilations": (1, 2), "input_size": 11},
    "effective_receptive_fields": {"maps": {"a": np.abs(IMAGE[..., 0])}},
    "feature_maps": {"maps": {"a": IMAGE}, "image": IMAGE, "channels": 2},
    "kernels": {"kernel": RNG.normal(size=(3, 3, 2, 4)), "max_kernels": 3},
    "layer_bars": {"names": ("a", "b"), "columns": {"ms": (1.0, 2.0)}},
    "learning_curves": {"history": ({"step": 1, "loss": 0.5, "accuracy": 0.1},), "metrics": ("loss", "accuracy")},
    "mask_colours": {"num_classes": 3},
    "prediction_grid": {"images": IMAGE[None], "labels": [1], "probabilities": [[0.2, 0.8]], "class_names": ("a", "b"), "columns": 2},
    "receptive_field_overlay": {"fn": square, "image": IMAGE, "output": (1, 2)},
    "restoration_grid": {"degraded": IMAGE[None], "restored": IMAGE[None], "clean": IMAGE[None], "titles": ("x",)},
    "save": {"figure": plots.dilation_taps(), "path": "a.png", "dpi": 50},
    "segment_bars": {"truths": ([0, 1, 1],), "predictions": ([0, 0, 1],), "class_names": ("a", "b")},
    "segmentation_comparison": {"image": IMAGE, "masks": {"truth": MASK}, "class_names": ("a", "b"), "background": 0},
    "segmentation_grid": {
        "images": IMAGE[None],
        "truths": MASK[None],
        "predictions": MASK[None],
        "class_names": ("a", "b"),
        "titles": ("x",),
        "background": 0,
    },
    "segmentation_overlay": {"image": IMAGE, "mask": MASK, "class_names": ("a", "b"), "opacity": 0.5, "background": 0},
    "series_grid": {"series": (SERIES[0],), "labels": [1], "probabilities": [[0.2, 0.8]], "class_names": ("a", "b"), "columns": 2},
    "step_outputs": {
        "truth": SERIES[0],
        "predicted": SERIES[1],
        "names": ("a", "b", "c", "d"),
        "title": "t",
        "baseline": SERIES[0],
        "baseline_name": "last",
        "steps": np.arange(9),
        "step_name": "day",
        "joined": True,
        "panels": 2,
    },
    "volume_slices": {
        "volumes": IMAGE[None, ..., None],
        "truths": VOLUME_MASK[None],
        "predictions": VOLUME_MASK[None],
        "class_names": ("a", "b"),
        "titles": ("x",),
        "spacing": (1.0, 2.0, 0.5),
        "background": 0,
    },
    "waveforms": {"samples": SERIES[..., 0], "rate": 100.0, "names": ("a", "b")},
}
METHODS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "create": (models.create, models.create, {}),
    "predict": (RUN.predict, RUN.predict, {"given": SERIES[0, :, :2], "top": None, "steps": 2, "rate": None}),
    "init_stream": (
        streaming.Streamable.init_stream,
        lambda **options: TCN.apply(TCN_VARIABLES, **options, method="init_stream"),
        {"batch_size": 2, "dtype": jnp.float32},
    ),
    "stream": (
        streaming.Streamable.stream,
        lambda **options: TCN.apply(TCN_VARIABLES, **options, method="stream"),
        {"chunk": SERIES[..., :2], "state": STATE},
    ),
}
ALL = {name: (PUBLIC[name], PUBLIC[name], valid) for name, valid in CALLS.items()} | METHODS
# Their values cannot be read, or Flax names what is missing.
OPAQUE = {"key", "variables", "figure"}
ARGUMENTS = [(name, argument) for name, (*_, valid) in ALL.items() for argument in valid if argument not in OPAQUE]
# What other functions call with checked arguments, and what describes or holds results.
UNCHECKED = {
    *("DataSpec", "Detections", "Flow", "Inference", "ReceptiveField", "Ring", "State", "UserError", "advance_ring", "batch_axis"),
    *("conv_step", "conv_step_nd", "conv_transpose_step", "degridded_conv", "embed_sequence", "in_order", "names", "new_ring", "Profile"),
}


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_wrong_arguments_of_functions(name, argument, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    signed, function, valid = ALL[name]
    failures = []
    for kind in kinds(inspect.signature(signed).parameters[argument].annotation):
        for value in WRONG[kind]:
            said = refusal(lambda value=value: function(**{**valid, argument: value}))
            if (said or "").startswith("FAILED") or (
                kind is not None and (said is None or (argument not in said and shown(value) not in said))
            ):
                failures.append(f"{shown(value)}: {said}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("load", "load_weights", "read_weights", "create")])
def test_valid_calls_are_not_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, function, valid = ALL[name]
    assert refusal(lambda: function(**valid)) is None


def test_everything_public_is_here():
    assert PUBLIC.keys() - MODULES.keys() - ALL.keys() - CASES.keys() - INTERNAL - UNCHECKED == set()
    for name, (signed, _, valid) in ALL.items():
        known = inspect.signature(signed).parameters.values()
        missing = {p.name for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)} - valid.keys() - {"self"}
        assert not missing, (name, missing)
