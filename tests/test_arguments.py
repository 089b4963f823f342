"""Wrong arguments of the public functions and modules: one line that names the argument and the value, never a result.

Each argument has a kind. A kind has values that are refused for every argument of that kind, and, where another type means the same, a
conversion of the valid value that must not change the result.
"""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import dilax
from dilax import (
    audio,
    blocks,
    causal,
    context,
    crf,
    detection_metrics,
    functional,
    generate,
    geometry,
    losses,
    lowerings,
    metrics,
    modules,
    pooling,
    resizing,
    segments,
    smoothing,
    spacings,
    tagging,
)
from dilax.errors import UserError, shown

KEY = jax.random.key(0)
RNG = np.random.default_rng(2)


def real(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(0.3, 1.0, shape), jnp.float32)


LISTS = ([2], (2,), (), [], {}, np.array([2, 3]), jnp.ones((2, 2)))
NUMBERLESS = ("3", None, object(), *LISTS)
ARRAYS = ("text", None, {}, object(), [[1.0], [1.0, 2.0]], real(), real(1, 1, 1, 1, 1, 1, 1))
# The values of each kind that are wrong for all of its arguments, and the same value in other types.
KINDS: dict[str, tuple[tuple[Any, ...], tuple[Callable[[Any], Any], ...]]] = {
    "positive": ((0, -1, 2.5, float("nan"), np.float64(2), True, *NUMBERLESS), (np.int64, np.uint16)),
    "count": ((-1, 2.5, float("nan"), True, *NUMBERLESS), (np.int64,)),
    "axes": ((0, -1, 2.5, np.float32(2), "3", True, (), [1.5], (1,) * 7, {}, object(), np.array([2, 3]), (0,), ("1",)), (np.int64,)),
    "padding": (
        ("same", "VALIDD", "", -1, 2.5, None, True, (), {}, ("SAME",) * 7, np.array([[1, 2]]), (((1, 2, 3),),), ((-1, 2),), ([],)),
        (),
    ),
    "word": (("nonsense", "", 3, None, ["lax"], ("lax",), (), np.array(["lax"]), object()), ()),
    "number": ((float("nan"), float("inf"), 1j, True, *NUMBERLESS), (np.float64,)),
    "flag": (("no", 2, None, [], np.array([True, False])), (np.bool_,)),
    "dtype": (("float33", 3.5, "int32", jnp.int8, [], object()), ()),
    "precision": (("exact", 3.5, [], object(), ("high",) * 3), ()),
    "function": (("zeros", 3, [], {}), ()),
    "dilations": ((2, 0, "12", None, object(), (0,), (1.5,), (-1, 2), ("1",), (), np.array([1, 2]), {}, ((),)), ()),
    "floats": ((*ARRAYS, jnp.ones((2, 9, 4), jnp.int32), jnp.ones((2, 9, 4), bool)), ()),
    "integers": ((*ARRAYS, real(2, 3), jnp.ones((2, 3), bool)), ()),
    "array": (ARRAYS, ()),
    "bools": (("text", {}, object(), real(2), jnp.ones((2, 9), jnp.int32), jnp.ones((7, 7), bool)), ()),
}


class Case(NamedTuple):
    function: Callable[..., Any]
    valid: dict[str, Any]
    kinds: dict[str, str]
    # Values that are wrong for the kind, but right for this argument.
    right: Mapping[str, tuple[Any, ...]] = MappingProxyType({})


def module(cls: type[nn.Module], x: jax.Array, **call: Any) -> Callable[..., Any]:
    def run(**fields: Any) -> Any:
        return cls(**fields).init_with_output({"params": KEY, "dropout": KEY}, x, **call)[0]

    return run


X, K = real(2, 9, 4), real(3, 4, 6)
GEOMETRY = {"stride": "axes", "padding": "padding", "dilation": "axes"}
VALID_GEOMETRY = {"stride": 1, "padding": "SAME", "dilation": 2}
CONV = {**GEOMETRY, "padding_mode": "word", "precision": "precision", "lowering": "word"}
VALID_CONV = {**VALID_GEOMETRY, "padding_mode": "zeros", "precision": "highest", "lowering": "lax"}
TRANSPOSED = {name: kind for name, kind in CONV.items() if name != "padding_mode"}
VALID_TRANSPOSED = {name: value for name, value in VALID_CONV.items() if name != "padding_mode"}
SIZES = {"input_size": "axes", "kernel_size": "axes", **GEOMETRY}
VALID_SIZES = {"input_size": 9, "kernel_size": 3, **VALID_GEOMETRY}
# Functions of integers alone take any number of axes.
ANY_RANK: dict[str, tuple[Any, ...]] = dict.fromkeys(("input_size", "kernel_size", "stride", "dilation"), ((1,) * 7,))
PIXELS = {"logits": "floats", "labels": "integers", "ignored_label": "count"}
VALID_PIXELS = {"logits": real(2, 3, 4), "labels": jnp.ones((2, 3), jnp.int32), "ignored_label": 255}
BANDS = {"sample_rate": "number", "bands": "positive", "lowest": "number", "highest": "number"}
VALID_BANDS = {"sample_rate": 8000, "bands": 5, "lowest": 20.0, "highest": 4000.0}
DRAW = {"temperature": "number", "top_k": "count", "top_p": "number"}
VALID_DRAW = {"temperature": 0.5, "top_k": 2, "top_p": 0.5}
LAYER = {"use_bias": "flag", "dtype": "dtype", "param_dtype": "dtype", "kernel_init": "function", "bias_init": "function"}
ZEROS = nn.initializers.zeros_init()
VALID_LAYER = {"use_bias": True, "dtype": jnp.float32, "param_dtype": jnp.float32, "kernel_init": ZEROS, "bias_init": ZEROS}
WAVENET = dilax.models.WaveNet(vocabulary=8, dilations=(1, 2), features=4)
CODES = jnp.ones((2, 3), jnp.int32)
VARIABLES = jax.jit(lambda: WAVENET.init(KEY, CODES, train=False))()
TAGS, CHAIN = ("O", "B-x", "I-x"), real(2, 9, 4, 4)
OUTPUTS, STATE = jax.jit(lambda: WAVENET.apply(VARIABLES, CODES, WAVENET.apply(VARIABLES, 2, method="init_stream"), method="stream"))()
TCN = dilax.models.TCN(out_features=2, kernel_size=2, features=(3,))
TCN_VARIABLES = jax.jit(lambda: TCN.init(KEY, X[..., :2], train=False))()
BOXES, ANCHORS = X.at[..., 2:].add(9.0), real(5, 4).at[:, 2:].add(9.0)
MATCHED = {"boxes": BOXES, "mask": jnp.ones((2, 9), bool), "anchors": ANCHORS}
MATCHING = {"boxes": "floats", "mask": "bools", "anchors": "floats"}
SUPPRESSED = {"boxes": BOXES, "scores": real(2, 9), "iou_threshold": 0.5, "max_outputs": 3}
SUPPRESSION = {"boxes": "floats", "scores": "floats", "iou_threshold": "number", "max_outputs": "positive"}
PLAN = dilax.ConvPlan(1, (64,), 8, 8, (3,), (1,), ((2, 2),), (2,), 8, "float32")
NEGATIVE = {"ignored_label": (-1,)}


def layer(cls: type[nn.Module], valid: dict[str, Any], kinds: dict[str, str], x: jax.Array = X, **right: Any) -> Case:
    return Case(
        module(cls, x),
        {**VALID_TRANSPOSED, **VALID_LAYER, "kernel_size": (3,), "rank": None, **valid},
        {**TRANSPOSED, **LAYER, "kernel_size": "axes", "rank": "positive", **kinds},
        {"rank": (None,), "dtype": (None,), "kernel_size": ((2, 2, 2), *right.pop("kernel_size", ())), **right},
    )


CASES = {
    "dilated_conv": Case(
        dilax.dilated_conv,
        {"x": X, "kernel": K, **VALID_CONV, "groups": 1},
        {"x": "floats", "kernel": "floats", **CONV, "groups": "positive"},
    ),
    "depthwise_conv": Case(
        dilax.depthwise_conv, {"x": X, "kernel": real(3, 1, 4), **VALID_CONV}, {"x": "floats", "kernel": "floats", **CONV}
    ),
    "separable_conv": Case(
        dilax.separable_conv,
        {"x": X, "depthwise_kernel": real(3, 1, 4), "pointwise_kernel": real(1, 4, 5), **VALID_CONV},
        {"x": "floats", "depthwise_kernel": "floats", "pointwise_kernel": "floats", **CONV},
    ),
    "dilated_conv_transpose": Case(
        dilax.dilated_conv_transpose,
        {"x": X, "kernel": real(3, 2, 4), **VALID_TRANSPOSED, "groups": 1, "output_size": 9},
        {"x": "floats", "kernel": "floats", **TRANSPOSED, "groups": "positive", "output_size": "axes"},
    ),
    "smoothed_conv": Case(
        dilax.smoothed_conv,
        {"x": X, "kernel": K, "weights": real(3, 1, 1), "smoothing": "separable_shared", **VALID_CONV, "groups": 1},
        {"x": "floats", "kernel": "floats", "weights": "floats", "smoothing": "word", **CONV, "groups": "positive"},
    ),
    "group_interaction": Case(
        smoothing.group_interaction,
        {"x": X, "weights": real(2, 2), "dilation": 2, "precision": "highest"},
        {"x": "floats", "weights": "floats", "dilation": "axes", "precision": "precision"},
    ),
    "separable_shared_conv": Case(
        smoothing.separable_shared_conv,
        {"x": X, "weights": real(3, 1, 1), **VALID_TRANSPOSED, "padding_mode": "zeros"},
        {"x": "floats", "weights": "floats", **TRANSPOSED, "padding_mode": "word"},
    ),
    "interpolated_kernel": Case(
        spacings.interpolated_kernel,
        {
            "weights": real(2, 4, 6),
            "positions": real(1, 2, 4, 6),
            "widths": real(1, 2, 4, 6),
            "kernel_size": 5,
            "interpolation": "triangle",
        },
        {"weights": "floats", "positions": "floats", "widths": "floats", "kernel_size": "axes", "interpolation": "word"},
    ),
    "grid_positions": Case(
        lambda **options: spacings.grid_positions(**options)(KEY, (1, 3, 4, 6), jnp.float32),
        {"kernel_size": (3,), "dilation": 2},
        {"kernel_size": "axes", "dilation": "axes"},
        {"kernel_size": ((1,) * 7,)},
    ),
    "effective_kernel_size": Case(
        geometry.effective_kernel_size, {"kernel_size": 3, "dilation": 2}, {"kernel_size": "axes", "dilation": "axes"}, ANY_RANK
    ),
    "explicit_padding": Case(geometry.explicit_padding, VALID_SIZES, SIZES, {**ANY_RANK, "input_size": (0, (0,), (1,) * 7)}),
    "output_size": Case(geometry.output_size, VALID_SIZES, SIZES, {**ANY_RANK, "input_size": (0, (0,), (1,) * 7)}),
    "time_padding": Case(geometry.time_padding, {"kernel_size": 3, **VALID_GEOMETRY}, {"kernel_size": "axes", **GEOMETRY}, ANY_RANK),
    "max_pool": Case(
        dilax.max_pool,
        {"x": X, "window": 2, **VALID_GEOMETRY},
        {"x": "floats", "window": "axes", **GEOMETRY},
        {"x": (jnp.ones((2, 9, 4), jnp.int32),)},
    ),
    "avg_pool": Case(
        dilax.avg_pool,
        {"x": X, "window": 2, **VALID_GEOMETRY, "count_padding": True},
        {"x": "floats", "window": "axes", **GEOMETRY, "count_padding": "flag"},
    ),
    "pool_sequence": Case(
        dilax.pool_sequence,
        {"x": X, "kind": "mean", "mask": jnp.ones((2, 9), bool)},
        {"x": "floats", "kind": "word", "mask": "bools"},
    ),
    "resize": Case(
        dilax.resize,
        {"x": X, "size": 5, "method": "bilinear", "align_corners": False},
        {"x": "floats", "size": "axes", "method": "word", "align_corners": "flag"},
        {"x": (real(1, 1, 1, 1, 1, 1, 1),)},
    ),
    "interpolation_matrix": Case(
        resizing.interpolation_matrix,
        {"old": 3, "new": 5, "align_corners": True},
        {"old": "positive", "new": "positive", "align_corners": "flag"},
    ),
    "log_mel": Case(
        audio.log_mel,
        {"x": real(2, 900), **VALID_BANDS, "window": 400, "hop": 160, "floor": 1e-6},
        {"x": "floats", **BANDS, "window": "positive", "hop": "positive", "floor": "number"},
        {"highest": (None,)},
    ),
    "mel_filters": Case(audio.mel_filters, {"size": 512, **VALID_BANDS}, {"size": "positive", **BANDS}, {"highest": (None,)}),
    "mu_law_encode": Case(audio.mu_law_encode, {"x": X, "levels": 256}, {"x": "floats", "levels": "positive"}, {"x": ARRAYS[5:]}),
    "mu_law_decode": Case(audio.mu_law_decode, {"codes": CODES, "levels": 256}, {"codes": "integers", "levels": "positive"}),
    "pixel_cross_entropy": Case(
        losses.pixel_cross_entropy,
        {**VALID_PIXELS, "class_weights": (1.0, 2.0, 3.0, 4.0)},
        {**PIXELS, "class_weights": "array"},
        {"class_weights": (None,), **NEGATIVE},
    ),
    "focal_loss": Case(
        losses.focal_loss,
        {**VALID_PIXELS, "gamma": 2.0, "class_weights": (1.0, 2.0, 3.0, 4.0)},
        {**PIXELS, "gamma": "number", "class_weights": "array"},
        {"class_weights": (None,), **NEGATIVE},
    ),
    "distillation_loss": Case(
        losses.distillation_loss,
        {"logits": X, "teacher": X + 1, "temperature": 2.0, "mask": jnp.ones((2, 9), bool)},
        {"logits": "floats", "teacher": "floats", "temperature": "number", "mask": "bools"},
    ),
    "smoothing_loss": Case(
        losses.smoothing_loss,
        {"logits": X, "threshold": 4.0, "mask": jnp.ones((2, 9), bool)},
        {"logits": "floats", "threshold": "number", "mask": "bools"},
    ),
    "segment_scores": Case(
        segments.segment_scores,
        {"found": CODES, "labels": CODES, "mask": jnp.ones((2, 3), bool), "overlaps": (0.5,), "ignored": 0},
        {"found": "integers", "labels": "integers", "mask": "bools", "overlaps": "array", "ignored": "count"},
        {"ignored": (-1, None)},
    ),
    "f1_score": Case(
        segments.f1_score,
        {"found": 2, "wrong": 1, "missed": 0},
        dict.fromkeys(("found", "wrong", "missed"), "array"),
        dict.fromkeys(("found", "wrong", "missed"), ARRAYS[5:6]),
    ),
    "segments": Case(segments.segments, {"labels": np.array([1, 2])}, {"labels": "array"}, {"labels": ("text",)}),
    "chain_scores": Case(
        crf.chain_scores,
        {"emissions": X, "transitions": real(4, 4), "allowed": jnp.ones((4, 4), bool)},
        {"emissions": "floats", "transitions": "floats", "allowed": "bools"},
        {"allowed": (None,)},
    ),
    "forbid": Case(crf.forbid, {"scores": CHAIN, "allowed": jnp.ones((4, 4), bool)}, {"scores": "floats", "allowed": "bools"}),
    "log_partition": Case(
        crf.log_partition, {"scores": CHAIN, "mask": jnp.ones((2, 9), bool)}, {"scores": "floats", "mask": "bools"}, {"mask": (None,)}
    ),
    "log_likelihood": Case(
        crf.log_likelihood,
        {"scores": CHAIN, "labels": jnp.ones((2, 9), jnp.int32), "mask": jnp.ones((2, 9), bool)},
        {"scores": "floats", "labels": "integers", "mask": "bools"},
        {"mask": (None,)},
    ),
    "marginals": Case(
        crf.marginals, {"scores": CHAIN, "mask": jnp.ones((2, 9), bool)}, {"scores": "floats", "mask": "bools"}, {"mask": (None,)}
    ),
    "best_path": Case(
        crf.best_path, {"scores": CHAIN, "mask": jnp.ones((2, 9), bool)}, {"scores": "floats", "mask": "bools"}, {"mask": (None,)}
    ),
    "decode_tags": Case(
        tagging.decode_tags,
        {"outputs": X[..., :3], "mask": jnp.ones((2, 9), bool), "names": TAGS},
        {"outputs": "floats", "mask": "bools", "names": "word"},
        {"mask": (None,)},
    ),
    "span_scores": Case(
        tagging.span_scores,
        {"found": CODES, "labels": CODES, "mask": jnp.ones((2, 3), bool), "names": TAGS},
        {"found": "integers", "labels": "integers", "mask": "bools", "names": "word"},
    ),
    "allowed_transitions": Case(tagging.allowed_transitions, {"names": TAGS}, {"names": "word"}),
    "encode_words": Case(
        tagging.encode_words,
        {"words": ["ox"], "symbols": (tagging.UNKNOWN, "ox"), "characters": 4},
        {"words": "word", "symbols": "word", "characters": "positive"},
        {"words": (["lax"], ("lax",), ())},
    ),
    "dice_loss": Case(losses.dice_loss, VALID_PIXELS, PIXELS, NEGATIVE),
    "median_frequency_weights": Case(
        losses.median_frequency_weights,
        {"pixels": np.array([10, 40, 0]), "image_pixels": np.array([100, 100, 0])},
        {"pixels": "array", "image_pixels": "array"},
    ),
    "logistic_mixture_loss": Case(
        losses.logistic_mixture_loss,
        {"outputs": real(2, 6), "x": real(2), "levels": 256},
        {"outputs": "floats", "x": "floats", "levels": "positive"},
    ),
    "si_sdr": Case(
        losses.si_sdr,
        {"estimate": X, "target": real(2, 9, 4), "mask": jnp.ones((2, 9), bool)},
        {"estimate": "floats", "target": "floats", "mask": "bools"},
    ),
    "separation_loss": Case(
        losses.separation_loss,
        {"estimates": X[..., :2], "targets": real(2, 9, 2), "mask": jnp.ones((2, 9), bool)},
        {"estimates": "floats", "targets": "floats", "mask": "bools"},
    ),
    "area": Case(dilax.boxes.area, {"boxes": BOXES}, {"boxes": "floats"}),
    **{name: Case(getattr(dilax.boxes, name), {"a": BOXES, "b": X}, {"a": "floats", "b": "floats"}) for name in ("iou", "giou")},
    "clip_boxes": Case(dilax.boxes.clip_boxes, {"boxes": BOXES, "image_size": 7}, {"boxes": "floats", "image_size": "axes"}),
    **{
        name: Case(getattr(dilax.boxes, name), {given: BOXES, "anchors": BOXES + 1}, {given: "floats", "anchors": "floats"})
        for name, given in {"encode_boxes": "boxes", "decode_boxes": "deltas", "encode_ltrb": "boxes", "decode_ltrb": "distances"}.items()
    },
    "centreness": Case(dilax.boxes.centreness, {"distances": BOXES}, {"distances": "floats"}),
    "nms": Case(dilax.boxes.nms, SUPPRESSED, SUPPRESSION),
    "batched_nms": Case(
        dilax.boxes.batched_nms, {**SUPPRESSED, "classes": jnp.ones((2, 9), jnp.int32)}, {**SUPPRESSION, "classes": "integers"}
    ),
    "anchor_shapes": Case(
        dilax.anchors.anchor_shapes, {"sizes": (3, 4.5), "aspect_ratios": (1.0,)}, {"sizes": "array", "aspect_ratios": "array"}
    ),
    "grid_anchors": Case(
        dilax.anchors.grid_anchors,
        {"map_size": 3, "stride": 8, "shapes": np.ones((2, 4)), "offset": 0.5},
        {"map_size": "axes", "stride": "axes", "shapes": "array", "offset": "number"},
    ),
    "match_overlap": Case(
        dilax.anchors.match_overlap, {**MATCHED, "positive": 0.5, "negative": 0.4}, {**MATCHING, "positive": "number", "negative": "number"}
    ),
    "match_centres": Case(
        dilax.anchors.match_centres,
        {**MATCHED, "radius": 1.5, "ranges": jnp.ones((5, 2))},
        {**MATCHING, "radius": "number", "ranges": "floats"},
        {"ranges": (None,)},
    ),
    "match_nearest": Case(
        dilax.anchors.match_nearest,
        {**MATCHED, "predictions": jnp.stack([ANCHORS, ANCHORS]), "nearest": 2, "positive": 0.15, "negative": 0.7},
        {**MATCHING, "predictions": "floats", "nearest": "positive", "positive": "number", "negative": "number"},
    ),
    "sigmoid_focal_loss": Case(
        dilax.detection_losses.sigmoid_focal_loss,
        {"logits": X, "targets": X * 0 + 0.5, "alpha": 0.25, "gamma": 2.0},
        {"logits": "floats", "targets": "floats", "alpha": "number", "gamma": "number"},
        {"alpha": (None,)},
    ),
    "giou_loss": Case(dilax.detection_losses.giou_loss, {"boxes": BOXES, "targets": X}, {"boxes": "floats", "targets": "floats"}),
    "smooth_l1_loss": Case(
        dilax.detection_losses.smooth_l1_loss,
        {"predictions": BOXES, "targets": X, "beta": 0.5},
        {"predictions": "floats", "targets": "floats", "beta": "number"},
    ),
    "classification_sums": Case(
        metrics.classification_sums,
        {"logits": real(2, 4), "labels": jnp.ones(2, jnp.int32), "mask": jnp.ones(2, bool)},
        {"logits": "floats", "labels": "integers", "mask": "bools"},
    ),
    "segmentation_sums": Case(
        metrics.segmentation_sums,
        {**VALID_PIXELS, "mask": jnp.ones(2, bool)},
        {**PIXELS, "mask": "bools"},
        NEGATIVE,
    ),
    "dice_sums": Case(
        metrics.dice_sums,
        {
            "predictions": jnp.ones((2, 9), jnp.int32),
            "labels": jnp.ones((2, 9), jnp.int32),
            "mask": jnp.ones(2, bool),
            "num_classes": 3,
            "ignored_label": 255,
        },
        {"predictions": "integers", "labels": "integers", "mask": "bools", "num_classes": "positive", "ignored_label": "count"},
        NEGATIVE,
    ),
    "hausdorff_distance": Case(
        metrics.hausdorff_distance,
        {"prediction": np.eye(3, dtype=bool), "truth": np.ones((3, 3), bool), "spacing": 2.0, "percentile": 50.0},
        {"prediction": "bools", "truth": "bools", "spacing": "array", "percentile": "number"},
        {"spacing": (real(),)},
    ),
    "luminance": Case(metrics.luminance, {"images": real(2, 12, 13, 3)}, {"images": "floats"}),
    **{
        name: Case(
            getattr(metrics, name),
            {"images": real(2, 12, 13, 3), "targets": real(2, 12, 13, 3), **({} if name == "ssim_map" else {"border": 0})},
            {"images": "floats", "targets": "floats", **({} if name == "ssim_map" else {"border": "count"})},
        )
        for name in ("psnr", "ssim", "ssim_map")
    },
    "class_iou": Case(metrics.class_iou, {"confusion": [[3, 1], [0, 1]]}, {"confusion": "array"}),
    "mean_iou": Case(metrics.mean_iou, {"confusion": [[3, 1], [0, 1]]}, {"confusion": "array"}),
    "score_detections": Case(
        lambda **options: detection_metrics.score_detections(**options).precision,
        {
            **{"boxes": [[[0, 0, 2, 3]]], "scores": [[0.5]], "classes": [[1]], "mask": [[True]]},
            **{"true_boxes": [[[0, 0, 2, 2]]], "true_classes": [[1]], "true_mask": [[True]], "crowd": [[False]]},
            **{"num_classes": 2, "iou_thresholds": (0.5,), "max_detections": 3},
        },
        {
            **dict.fromkeys(("boxes", "scores", "classes", "true_boxes", "true_classes"), "array"),
            **dict.fromkeys(("mask", "true_mask", "crowd"), "bools"),
            **{"num_classes": "positive", "iou_thresholds": "array", "max_detections": "positive"},
        },
        {"crowd": (None,)},
    ),
    "sample_codes": Case(
        generate.sample_codes, {"key": KEY, "logits": real(2, 5), **VALID_DRAW}, {"logits": "floats", **DRAW}, {"top_k": (0,)}
    ),
    "sample_waveform": Case(
        generate.sample_waveform, {"key": KEY, "outputs": real(2, 6), "temperature": 0.5}, {"outputs": "floats", "temperature": "number"}
    ),
    "sample": Case(
        generate.sample,
        {"model": WAVENET, "variables": VARIABLES, "key": KEY, "prompt": CODES, "steps": 2, **VALID_DRAW, "conditions": {}},
        {"model": "word", "prompt": "integers", "steps": "positive", **DRAW, "conditions": "word"},
        {"conditions": (None,)},
    ),
    "forecast": Case(
        generate.forecast,
        {"model": TCN, "variables": TCN_VARIABLES, "x": X[..., :2], "steps": 2},
        {"model": "word", "x": "floats", "steps": "positive"},
    ),
    "select_lowering": Case(
        lowerings.select_lowering,
        {"plan": PLAN, "platform": "cpu", "operation": "output"},
        {"plan": "word", "platform": "word", "operation": "word"},
    ),
    "continue_sequence": Case(
        generate.continue_sequence,
        {"model": WAVENET, "variables": VARIABLES, "key": KEY, "outputs": OUTPUTS[:, -1], "state": STATE, "steps": 2, **VALID_DRAW},
        {"model": "word", "outputs": "floats", "steps": "positive", **DRAW},
        {"top_k": (0,)},
    ),
    "use_lowering": Case(lambda **options: lowerings.use_lowering(**options).__enter__(), {"name": "auto"}, {"name": "word"}),
    "use_quantisation": Case(
        lambda **options: dilax.use_quantisation(**options).__enter__(), {"dtype": "int8"}, {"dtype": "word"}, {"dtype": (None,)}
    ),
    "scaled_dilations": Case(
        context.scaled_dilations, {"dilations": (6, 12), "output_stride": 8}, {"dilations": "dilations", "output_stride": "positive"}
    ),
    "identity_init": Case(
        lambda **options: context.identity_init(**options)(KEY, (3, 4, 8)),
        {"channels": 4, "noise": 0.0},
        {"channels": "positive", "noise": "number"},
    ),
    "DilatedConv": layer(
        dilax.DilatedConv,
        {"features": 6, "dilation": 2, "groups": 1, "weight_norm": False, "padding_mode": "zeros"},
        {"features": "positive", "dilation": "axes", "groups": "positive", "weight_norm": "flag", "padding_mode": "word"},
    ),
    "DepthwiseConv": layer(dilax.DepthwiseConv, {"multiplier": 1, "dilation": 2}, {"multiplier": "positive", "dilation": "axes"}),
    "SeparableConv": layer(
        dilax.SeparableConv,
        {"features": 6, "multiplier": 1, "dilation": 2},
        {"features": "positive", "multiplier": "positive", "dilation": "axes"},
    ),
    "DilatedConvTranspose": layer(
        dilax.DilatedConvTranspose,
        {"features": 6, "dilation": 2, "groups": 1, "output_size": None},
        {"features": "positive", "dilation": "axes", "groups": "positive", "output_size": "axes"},
        output_size=(None,),
    ),
    "MultiDilationConv": layer(
        dilax.MultiDilationConv,
        {"features": 6, "dilations": (1, 2), "dilation": None, "share_kernel": False, "merge": "sum", "groups": 1},
        {"features": "positive", "dilations": "dilations", "share_kernel": "flag", "merge": "word", "groups": "positive"},
    ),
    "SmoothedConv": layer(
        dilax.SmoothedConv,
        {"features": 6, "dilation": 2, "groups": 1, "smoothing": "separable_shared", "padding_mode": "zeros"},
        {"features": "positive", "dilation": "axes", "groups": "positive", "smoothing": "word", "padding_mode": "word"},
    ),
    "DCLSConv": layer(
        dilax.DCLSConv,
        {"features": 6, "kernel_count": 2, "interpolation": "triangle", "dilation": None, "groups": 1, "padding_mode": "zeros"}
        | {"positions_init": ZEROS, "widths_init": ZEROS},
        {"features": "positive", "kernel_count": "positive", "interpolation": "word", "groups": "positive", "padding_mode": "word"}
        | {"positions_init": "function", "widths_init": "function"},
    ),
    "CausalConvTranspose": Case(
        module(dilax.CausalConvTranspose, X),
        {"features": 3, "kernel_size": 3, "stride": 2, "dilation": 1, "use_bias": True, "dtype": jnp.float32},
        {
            "features": "positive",
            "kernel_size": "positive",
            "stride": "positive",
            "dilation": "positive",
            "use_bias": "flag",
            "dtype": "dtype",
        },
        {"dtype": (None,)},
    ),
    "ASPP": Case(
        module(dilax.ASPP, X, train=False),
        {
            "features": 3,
            "dilations": (6, 12),
            "separable": False,
            "image_pooling": True,
            "dropout": 0.5,
            "norm": "layer",
            "activation": "relu",
            "dtype": jnp.float32,
        },
        {
            "features": "positive",
            "dilations": "dilations",
            "separable": "flag",
            "image_pooling": "flag",
            "dropout": "number",
            "norm": "word",
            "activation": "word",
            "dtype": "dtype",
        },
    ),
    "DenseASPP": Case(
        module(dilax.DenseASPP, X, train=False),
        {"growth": 3, "hidden_features": 4, "dilations": (1, 2), "dropout": 0.1, "norm": "layer", "activation": "relu"},
        {
            "growth": "positive",
            "hidden_features": "positive",
            "dilations": "dilations",
            "dropout": "number",
            "norm": "word",
            "activation": "word",
        },
    ),
    "ContextModule": Case(
        module(dilax.ContextModule, X),
        {"dilations": (1, 2), "multipliers": (1, 1), "noise": 0.0},
        {"dilations": "dilations", "multipliers": "dilations", "noise": "number"},
    ),
    "HybridDilatedBlock": Case(
        module(dilax.HybridDilatedBlock, X, train=False),
        {"features": 3, "dilations": (1, 2), "norm": "layer", "activation": "relu"},
        {"features": "positive", "dilations": "dilations", "norm": "word", "activation": "word"},
    ),
}
for name, argument in (("MultiDilationConv", "dilation"), ("DCLSConv", "dilation"), ("separable_shared_conv", "stride")):
    del CASES[name].valid[argument], CASES[name].kinds[argument]


def same(a: Any, b: Any) -> bool:
    if hasattr(a, "shape"):
        return getattr(b, "shape", None) == a.shape and b.dtype == a.dtype
    return type(a) is type(b) and a == b


ARGUMENTS = [(name, argument) for name, case in CASES.items() for argument in case.kinds]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_wrong_values_are_refused_in_one_line(name, argument):
    case = CASES[name]
    failures = []
    for value in KINDS[case.kinds[argument]][0]:
        if any(same(value, right) for right in case.right.get(argument, ())):
            continue
        try:
            result = case.function(**{**case.valid, argument: value})
        except UserError as error:
            text = str(error)
            if "\n" in text or argument not in text or len(text) > 500 or not names(text, value):
                failures.append(f"{shown(value)}: says {text}")
        except Exception as error:
            failures.append(f"{shown(value)}: {type(error).__name__} {str(error)[:80]!r}")
        else:
            failures.append(f"{shown(value)}: gives {str(jax.tree.map(jnp.shape, result))[:60]}")
    assert not failures, "\n".join(failures)


def names(text: str, value: Any) -> bool:
    """Whether a message shows the value: of an array, the shape or the dtype; modules hold lists as tuples."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(value, (np.ndarray, jax.Array)):
        return str(shape) in text or str(dtype) in text
    if re.search(r"\[\d\]=", text):  # one entry of a tuple
        return True
    said, form = (one.replace("[", "(").replace("]", ")").replace(",)", ")") for one in (text, shown(value)))
    return (
        form in said
        or "object at" in form
        or "(0)" in said
        or (isinstance(value, list) and str(np.shape(value)).replace(",)", ")") in said)
    )


CONVERTED = [(name, argument) for name, argument in ARGUMENTS if isinstance(CASES[name].valid[argument], int | float | bool)]


@functools.cache
def valid_result(name: str) -> Any:
    return CASES[name].function(**CASES[name].valid)


@pytest.mark.parametrize(("name", "argument"), [one for one in CONVERTED if KINDS[CASES[one[0]].kinds[one[1]]][1]])
def test_numbers_of_numpy_are_numbers(name, argument):
    case, expected = CASES[name], valid_result(name)
    for convert in KINDS[case.kinds[argument]][1]:
        jax.tree.map(np.testing.assert_array_equal, case.function(**{**case.valid, argument: convert(case.valid[argument])}), expected)


SCALARS = {"positive": (2, 3), "axes": (2, 3), "flag": (True,), "count": (2,), "number": (0.5, 2)}


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_arrays_without_axes_are_their_values(convert):
    for name, argument in CONVERTED:
        case = CASES[name]
        if CASES[name].kinds[argument] in SCALARS:
            result = case.function(**{**case.valid, argument: convert(case.valid[argument])})
            jax.tree.map(np.testing.assert_array_equal, result, valid_result(name))


def test_whole_numbers_of_other_dtypes_are_integers():
    expected = dilax.dilated_conv(X, K, dilation=3)
    whole: tuple[Any, ...] = (np.uint8(3), np.array(3, np.int16), jnp.int8(3), jnp.asarray(3, jnp.int4), ml_dtypes.int4(3))
    for three in whole:
        np.testing.assert_array_equal(dilax.dilated_conv(X, K, dilation=three), expected)
        in_a_list: Any = [three]
        np.testing.assert_array_equal(dilax.dilated_conv(X, K, dilation=in_a_list), expected)
    others: tuple[Any, ...] = (ml_dtypes.bfloat16(3), np.array([3]), jnp.asarray(True))
    for three in others:
        with pytest.raises(UserError, match="dilation"):
            dilax.dilated_conv(X, K, dilation=three)


TRACED = {
    "dilation": lambda value: dilax.dilated_conv(X, K, dilation=value),
    "groups": lambda value: dilax.dilated_conv(X, K, groups=value),
    "stride": lambda value: dilax.avg_pool(X, 2, stride=(value,)),
    "ignored_label": lambda value: losses.dice_loss(**{**VALID_PIXELS, "ignored_label": value}),
    "features": lambda value: dilax.DilatedConv(value, (3,)).init(KEY, X),
    "kernel_size": lambda value: blocks.ConvNormAct(3, (value,)).init(KEY, X, train=False),
    "steps": lambda value: generate.forecast(TCN, TCN_VARIABLES, X[..., :2], value),
    "batch_size": lambda value: TCN.apply(TCN_VARIABLES, value, method="init_stream"),
}


@pytest.mark.parametrize("argument", TRACED)
def test_traced_options_are_refused_by_name(argument):
    with pytest.raises(UserError) as caught:
        jax.jit(TRACED[argument])(jnp.int32(2))
    text = str(caught.value)
    assert f"{argument}=" in text and "is traced" in text and "static_argnames" in text and "\n" not in text


MASKED = {
    "masked": lambda mask: blocks.masked(X, mask),
    "norm": lambda mask: blocks.Norm("global").init(KEY, X, train=False, mask=mask),
    "pool_sequence": lambda mask: dilax.pool_sequence(X, kind="mean", mask=mask),
    "si_sdr": lambda mask: losses.si_sdr(X, X + 1, mask),
    "model": lambda mask: dilax.models.TCN(features=(3,), causal=False).init(KEY, X, train=False, mask=mask),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_of_numbers_are_refused(name):
    """The complement of an integer mask is -1 and -2, which would select all samples."""
    MASKED[name](jnp.ones((2, 9), bool))
    for mask in (jnp.ones((2, 9), jnp.int32), jnp.ones((2, 9))):
        with pytest.raises(UserError, match=r"mask has dtype (int32|float32); .*, as in mask\.astype\(bool\)"):
            MASKED[name](mask)


# Functions that other functions call with checked arguments, and a module without options to get wrong.
INTERNAL = {
    "scope",
    "is_integer",
    "per_axis",
    "transposed_size",
    "space_mean",
    "CumulativeNorm",
    "Delay",
    "Lowering",
    "ConvPlan",
    "supports",
    "in_scope",
    "check_name",
}


def test_every_public_function_and_module_is_here():
    files = (functional, geometry, pooling, resizing, audio, losses, metrics, generate, context, modules, causal, smoothing, spacings)
    public = {
        name
        for file in (*files, lowerings.registry, dilax.boxes, dilax.anchors, dilax.detection_losses)
        for name, one in vars(file).items()
        if callable(one) and getattr(one, "__module__", "") == file.__name__ and not name.startswith("_")
    }
    assert public - INTERNAL - CASES.keys() == set()
    for name, case in CASES.items():
        assert case.kinds.keys() <= case.valid.keys(), name
