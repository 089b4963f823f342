"""Test that conversion is strict, and that converted networks have the outputs of the original ones at every output stride (law 11)."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from foreign import random_state
from selection import with_slow

import dilax
from dilax import models, weights
from dilax.errors import UserError
from dilax.state_dicts import beneath, convert, find_state_dict, read_state_dict, target


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays["about"])), arrays


FIXTURES = {name: read(name) for name in ("networks", "backbones")}
DETECTORS, _ = read("detectors")
PUBLISHED = {
    source: shapes for about in (*(about for about, _ in FIXTURES.values()), DETECTORS) for source, shapes in about["published"].items()
}
# Those of which a smaller or a larger network of the same kind is there, too.
REPEATS = [
    source
    for source in PUBLISHED
    if any(name in source for name in ("drn_c_42", "drn_d_22", "drn_d_38", "drn_d_105", "resnet101", "resnet34"))
]
SMALL = [
    pytest.param(case, arrays["x"], arrays[f"y{case['seed']}"], id=f"{case['kind']} at {case['output_stride']}")
    for about, arrays in FIXTURES.values()
    for case in about["small"]
]
WIDTHS = dict(blocks=(2, 1, 2, 2), stage_features=(4, 6, 8, 10))
DRN = dict(blocks=(1, 1, 2, 1, 2, 2, 1, 1), stage_features=(4, 4, 6, 6, 8, 8, 8, 8))
BACKBONE = dict(backbone=functools.partial(models.ResNet, **WIDTHS))
FIELDS: dict[str, dict[str, Any]] = {
    "basic": WIDTHS,
    "bottleneck": WIDTHS,
    "mobilenet_v3": dict(
        kernel_sizes=(3, 3, 5, 5, 3, 5, 5),
        inner_features=(8, 16, 24, 40, 32, 72, 40),
        block_features=(8, 16, 16, 16, 24, 24, 24),
        strides=(1, 2, 2, 1, 2, 2, 1),
        squeeze_excite_blocks=(3, 4, 6, 7),
        relu_blocks=4,
        stem_features=8,
        last_features=144,
        head_features=16,
    ),
    "efficientnet": dict(
        blocks=(1, 2, 1, 1, 1, 2, 1), stage_features=(8, 8, 16, 16, 24, 24, 32), stem_features=8, last_features=40, expansion=3
    ),
    "densenet": dict(blocks=(2, 1, 2, 2), growth_features=4, stem_features=8, expansion=2),
    "seresnet": dict(blocks=(1, 1, 1, 2), stage_features=(64, 32, 32, 32)),
    "fcn": BACKBONE,
    "deeplabv3": BACKBONE,
    **{f"drn {kind}": DRN for kind in ("C", "D", "D wide")},
    **{
        f"drn {kind} segmenter": dict(backbone=functools.partial(models.DRN, architecture=kind[0], bottleneck=kind == "D wide", **DRN))
        for kind in ("C", "D", "D wide")
    },
}


@pytest.mark.parametrize(("case", "x", "expected"), SMALL)
def test_outputs_equal_those_of_torch(case, x, expected, tmp_path):
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **random_state(case["shapes"], case["seed"]))
    model, variables = dilax.load_weights(case["source"], tmp_path / "weights.npz", fields=FIELDS[case["kind"]])
    run = jax.jit(functools.partial(model.apply, train=False, output_stride=case["output_stride"]))
    y = np.asarray(run(variables, x))
    chex.assert_trees_all_close(y if y.ndim == 2 else y[:, 9:-8:7, 9:-8:7], expected, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("source", with_slow(PUBLISHED, repeats=REPEATS))
def test_published_state_dicts_fit(source):
    shapes = PUBLISHED[source]
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    fields = weights.fields_of(source, state)
    classes = {"aux_classifier.4.bias": 21, "seg.bias": 19, "head.classification_head.cls_logits.bias": 91}
    assert fields == {"num_classes": next((number for name, number in classes.items() if name in shapes), 1000)} | (
        {"aux_head": True} if "aux_classifier.4.bias" in shapes else {}
    )
    library, _, name = source.partition(":")
    shapes = weights.shapes_of(models.create(name, **fields))
    variables = convert(state, weights.SOURCES[library][name], shapes)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)


def test_older_names_of_densenet_fit():
    """Its published file has "norm.1" for "norm1"."""
    shapes = PUBLISHED["torchvision:densenet121"]
    names = {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", name): name for name in shapes}
    assert "features.denseblock1.denselayer1.norm.1.weight" in names and len(names) == len(shapes)
    rules = weights.SOURCES["torchvision"]["densenet121"]
    assert [target(name, rules) for name in names] == [target(name, rules) for name in names.values()]


def test_every_source_has_a_published_state_dict():
    assert {f"{library}:{name}" for library, known in weights.SOURCES.items() for name in known} == set(PUBLISHED)


STATE = {"a.weight": np.arange(6.0).reshape(2, 3), "a.bias": np.ones(2), "b.weight": np.ones(2), "b.num_batches_tracked": np.array(3)}
TEMPLATE = {"params": {"x": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2)}, "y": {"scale": np.zeros(2)}}}
RULES = (("a", "x"), ("b", "y"))


def test_layout_and_dtype():
    kernel = convert(STATE, RULES, TEMPLATE)["params"]["x"]["kernel"]
    assert np.array_equal(kernel, [[0, 3], [1, 4], [2, 5]]) and kernel.dtype == np.float32


def test_all_mismatches_are_listed_at_once():
    state = {**STATE, "a.weight": np.ones((2, 4)), "c.weight": np.ones(2), "c.bias": np.ones(2), "top": np.ones(1)}
    del state["b.weight"]
    with pytest.raises(UserError) as error:
        convert(state, RULES, TEMPLATE, description="w.npz")
    assert str(error.value) == (
        "w.npz does not fit the model; unused arrays (3): c.{weight, bias}, top; missing parameters (1): params/y/scale; "
        "mismatched shapes (1): a.weight (2, 4) for params/x/kernel (3, 2). Load it into the model it was saved from."
    )


def test_two_arrays_for_one_leaf_are_refused():
    with pytest.raises(UserError, match=r"unused arrays \(1\): c\.bias\."):
        convert({**STATE, "c.bias": np.ones(2)}, (*RULES, ("c", "x")), TEMPLATE)


def test_rules_of_nested_modules():
    state = {f"m.{name}": array for name, array in STATE.items()}
    variables = convert(state, beneath("m", "n", RULES), {"params": {"n": TEMPLATE["params"]}})
    chex.assert_trees_all_equal(variables["params"]["n"], convert(STATE, RULES, TEMPLATE)["params"])


def test_weights_of_another_model_are_named(tmp_path):
    shapes = PUBLISHED["torchvision:resnet18"]
    np.savez(tmp_path / "w.npz", allow_pickle=False, **random_state(shapes, 0))
    with pytest.raises(
        UserError, match=r"w\.npz holds the weights of torchvision:resnet18, not of drn:drn_d_22; give that source instead\.$"
    ):
        dilax.load_weights("drn:drn_d_22", tmp_path / "w.npz")
    with pytest.raises(UserError, match=r'source=\'torchvision:resnet19\' is unknown.*Did you mean "torchvision:resnet18"'):
        dilax.load_weights("torchvision:resnet19", tmp_path / "w.npz")
    with pytest.raises(UserError, match=r"mismatched shapes \(2\): fc\.weight \(1000, 512\) for params/head/kernel \(512, 7\)"):
        dilax.load_weights("torchvision:resnet18", tmp_path / "w.npz", fields={"num_classes": 7})


def save(path: Path, state: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **state)
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy", reason="needs safetensors").save_file(state, path)
    else:
        torch = pytest.importorskip("torch", reason="needs torch")
        tensors = {f"module.{name}": torch.tensor(array) for name, array in state.items()}
        torch.save({"epoch": 3, "state_dict": tensors}, path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_files_are_read_back_and_damage_is_detected(suffix, tmp_path):
    path, state = tmp_path / f"w{suffix}", random_state({"a.weight": [40, 30], "a.bias": [40]}, 0)
    save(path, state)
    chex.assert_trees_all_equal(read_state_dict(path), state)
    whole = path.read_bytes()
    for size in (0, 3, 60, len(whole) // 2, len(whole) - 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"w\{suffix} is damaged or is not a \{suffix} file \(.*\); download it again\.$"):
            read_state_dict(path)


def test_files_that_are_not_state_dicts(tmp_path):
    with pytest.raises(UserError, match=r"w\.pth does not exist; give the path of a weights file\."):
        read_state_dict(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.h5: the name of a weights file must end in one of \.pth, "):
        read_state_dict(tmp_path / "w.h5")
    np.savez(tmp_path / "w.npz", allow_pickle=False)
    with pytest.raises(UserError, match=r"w\.npz does not hold named arrays"):
        read_state_dict(tmp_path / "w.npz")
    with open(tmp_path / "one.npz", "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(UserError, match=r"one\.npz is damaged or is not a \.npz file \(a single unnamed array\)"):
        read_state_dict(tmp_path / "one.npz")
    torch = pytest.importorskip("torch", reason="needs torch")
    for saved, words in ((torch.nn.Linear(2, 3), "holds more than tensors"), ([1, 2], "holds a list, not a state dict")):
        torch.save(saved, tmp_path / "w.pth")
        with pytest.raises(UserError, match=words):
            read_state_dict(tmp_path / "w.pth")


WEIGHTS = {"a.weight": np.ones((2, 3)), "a.bias": np.ones(2)}
ADAM = {"state": {0: {"step": np.ones(()), "exp_avg": np.ones((2, 3))}}, "param_groups": [{"lr": 0.1}]}
OTHER = {name: array + 1 for name, array in WEIGHTS.items()}
FOUND = {
    "itself": WEIGHTS,
    "model_state_dict": {"epoch": 3, "model_state_dict": WEIGHTS, "optimizer_state_dict": ADAM},
    "net": {"net": WEIGHTS, "acc": 92.1, "epoch": 5},
    "an unusual key": {"generator": WEIGHTS, "optimizer": ADAM, "metrics": {"loss": np.ones(())}, "rng": np.ones(5)},
    "two levels": {"checkpoint": {"state_dict": WEIGHTS, "epoch": 3}, "optimizer": ADAM},
    "two usual levels": {"model": {"state_dict": WEIGHTS}},
}
NOT_FOUND = {
    "a list": ([1, 2], "holds a list, not a state dict; save model.state_dict()."),
    "no arrays": ({"epoch": 3, "optimizer": ADAM}, "holds no state dict; its keys are 'epoch', 'optimizer'; save model.state_dict()."),
    "other values": ({"a": np.ones(2), "b": "text"}, "holds no state dict; its keys are 'a', 'b'; save model.state_dict()."),
    "nothing": ({}, "holds no state dict; its keys are none; save model.state_dict()."),
    "too deep": ({"a": {"b": {"c": WEIGHTS}}}, "holds no state dict; its keys are 'a'; save model.state_dict()."),
    "several": (
        {"generator": WEIGHTS, "critic": OTHER},
        "holds several state dicts under the keys 'generator', 'critic'; save model.state_dict().",
    ),
    "several models": (
        {"generator": {"model": WEIGHTS}, "critic": {"model": OTHER}},
        "holds several state dicts under the keys 'generator/model', 'critic/model'; save model.state_dict().",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_state_dict_of_a_checkpoint_is_found(name):
    assert find_state_dict(FOUND[name], Path("w.pth")) is WEIGHTS


@pytest.mark.parametrize("name", NOT_FOUND)
def test_a_checkpoint_without_one_state_dict(name):
    loaded, text = NOT_FOUND[name]
    with pytest.raises(UserError) as caught:
        find_state_dict(loaded, Path("w.pth"))
    assert str(caught.value) == f"w.pth {text}"


def test_which_of_several_state_dicts_is_read_is_said():
    text = r"^w\.pth holds several state dicts, under the keys 'model_ema', 'model'; 'model' is read\.$"
    with pytest.warns(UserWarning, match=text):
        assert find_state_dict({"model_ema": OTHER, "model": WEIGHTS}, Path("w.pth")) is WEIGHTS


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_a_path_in_the_home_folder_and_the_prefixes_of_wrappers(prefix, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "w.npz", {prefix + name: array for name, array in WEIGHTS.items()})
    chex.assert_trees_all_equal(read_state_dict("~/w.npz"), WEIGHTS)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'none.npz'} does not exist")):
        dilax.load_weights("torchvision:resnet18", "~/none.npz")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"x")
    (tmp_path / "w.safetensors").write_bytes(b"x")
    for name in ("torch", "safetensors"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for path, package in (("w.pth", "torch"), ("w.safetensors", "safetensors")):
        with pytest.raises(UserError, match=re.escape(f"{path}: reading it requires {package}; pip install {package}, or save")):
            read_state_dict(tmp_path / path)
