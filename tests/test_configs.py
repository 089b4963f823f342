"""Every config, in every variant, builds and takes one step on images of its shape; a locked config refuses a misspelt key."""

import importlib
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest
import task_cases
from PIL import Image
from selection import with_slow

import dilax
from dilax import DataSpec
from dilax.errors import UserError
from dilax.loading import leaves_with_paths
from train import cli, listing, loop, main, own_data
from train.build import Setup, build
from train.config import check, default_config, from_json, model_config, task_class, to_json

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
VARIANTS = {
    "blood_cells": ("full", "no_dilation", "smoke"),
    "camvid": ("full", "scratch", "no_dilation", "smoke"),
    "cifar": ("full", "cpu", "smoke"),
    "disease_names": ("full", "no_dilation", "smoke"),
    "denoise": ("full", "no_dilation", "smoke"),
    "finetune_digits": ("full", "scratch", "smoke"),
    "salads": ("full", "causal", "no_dilation", "smoke"),
    "hippocampus": ("full", "no_dilation", "smoke"),
    "separation": ("full", "cpu", "smoke"),
    "timeseries": ("full", "OSULeaf", "ACSF1", "GunPoint", "smoke"),
}
# Configs for one's own data, which take its path in place of a variant.
OWN = (
    *("my_boxes", "my_images", "my_masks", "my_photographs", "my_recordings", "my_sounds", "my_table", "my_tags", "my_text", "my_volumes"),
    "resnet_finetune",
)
CASES = [(name, variant) for name in NAMES if name not in OWN for variant in VARIANTS.get(name, ("full", "smoke"))]
CASES += [(name, "") for name in OWN]
SHAPES = {
    "digits": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "fashion_mnist": (28, 28, 1),
    "camvid": (60, 80, 3),  # a third of its sides
    "cells": (210, 96, 3),
    "restoration": (60, 60, 1),
    "folder": (500, 500, 3),
    "voc_xml": (240, 320, 3),
    "shapes": (64, 96, 3),
    "ellipsoids": (20, 20, 20, 1),
    "volumes": (43, 59, 47, 1),
}
# Of sequences: shape of an input, outputs, symbols. Some windows are shorter here: only how long a step takes depends on it.
SEQUENCES = {
    "actions": ((40, 6), 5, 0),
    "adding": ((40, 2), 1, 0),
    "bible": ((40,), 66, 66),
    "copy_memory": ((40,), 10, 10),
    "csv": ((40, 3), 3, 0),
    "conll": ((40, 18), 3, 11),
    "digits": ((784, 1), 10, 0),
    "mat": ((40, 18), 18, 0),
    "piano": ((40, 88), 88, 0),
    "recordings": ((40, 6), 5, 0),
    "ucr:ACSF1": ((60, 1), 10, 0),
    "ucr:GunPoint": ((60, 1), 2, 0),
    "ucr:OSULeaf": ((60, 1), 6, 0),
    "wav, waveform": ((40,), 256, 256),
    "wav, sequence_classification": ((40, 32), 10, 0),
    "mixtures": ((40, 1), 2, 0),
    "text": ((40,), 2, 256),
}
SEGMENTED = {"camvid": 11, "cells": 3, "ellipsoids": 3, "folder": 21, "volumes": 3}
RNG = np.random.default_rng(0)


def get(name: str, variant: str):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def image_batch(config: Any, shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    if config.task == "restoration":
        return {"image": RNG.integers(0, 256, (2, *shape), np.uint8)}
    labels = (
        RNG.integers(0, classes, (2, *shape[:-1]), np.uint8) if config.task == "segmentation" else RNG.integers(0, classes, 2, np.int32)
    )
    return {"image": RNG.integers(0, 256, (2, *shape), np.uint8), "label": labels}


def box_batch(shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    boxes, single = np.array([[4, 4, 40, 30], [30, 20, 60, 60]], np.float32), np.ones((2, 2), bool)
    labels = RNG.integers(0, classes, (2, 2), np.int32)
    image = RNG.integers(0, 256, (2, *shape), np.uint8)
    return {"image": image, "boxes": np.stack([boxes, boxes]), "classes": labels, "box_mask": single, "crowd": ~single}


def sequence_batch(config: Any, shape: tuple[int, ...], outputs: int, symbols: int) -> dict[str, np.ndarray]:
    if config.data.name == "digits":
        return image_batch(config, (28, 28, 1), outputs)
    lengths = np.array([shape[0], shape[0] // 2], np.int32)
    x = RNG.integers(0, symbols, (2, *shape), np.int32) if symbols else RNG.normal(size=(2, *shape)).astype(np.float32)
    if config.task == "sequence_classification":
        return {"input": x, "length": lengths, "label": RNG.integers(0, outputs, 2, np.int32)}
    if config.task == "separation":
        return {"input": x, "length": lengths, "label": RNG.normal(size=(2, shape[0], outputs)).astype(np.float32)}
    if config.task == "sequence_labelling":
        # Tags begin with O and go on with B-, then I-.
        label = np.tile(np.arange(shape[0]) % outputs, (2, 1)).astype(np.int32)
        return {"input": x, "length": lengths, "label": label, "counted": np.arange(shape[0])[None] < lengths[:, None]}
    shaped = (2, shape[0]) if symbols else (2, shape[0], outputs)
    label = RNG.integers(0, outputs, shaped, np.int32) if symbols else RNG.random(shaped).astype(np.float32)
    return {"input": x, "length": lengths, "label": label, "counted": np.arange(shape[0])[None] < lengths[:, None]}


def built(name: str, variant: str) -> tuple[Setup, Any]:
    """The setup of a config, with a batch of two examples."""
    config = get(name, variant)
    assert to_json(from_json(to_json(config))) == to_json(config)
    config.batch_size = -(-config.batch_size // 8) * 8  # one that is meant for a single device cannot be spread over those of the tests
    config.lock()
    if "sequence" in config:
        shape, outputs, symbols = SEQUENCES.get(config.data.name) or SEQUENCES[f"{config.data.name}, {config.task}"]
        batch = sequence_batch(config, shape, outputs, symbols)
    else:
        shape, symbols = SHAPES[config.task if config.task in SHAPES else config.data.name], 0
        outputs = SEGMENTED.get(config.data.name) or len(config.data.get("classes", ())) or 10
        batch = box_batch(shape, outputs) if config.task == "detection" else image_batch(config, shape, outputs)
    order = "" if shape != (784, 1) else "permuted" if config.sequence.permute else "rows"
    names, codes = (tuple(map(str, range(count))) for count in (outputs, symbols))
    names = ("O", "B-x", "I-x") if config.data.name == "conll" else names
    return build(config, DataSpec(config.data.name, shape, names, 1000, codes, pixels=order)), batch


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_builds_and_a_step_can_be_traced(name, variant):
    setup, batch = built(name, variant)
    state, _ = jax.eval_shape(setup.steps.train, jax.eval_shape(setup.steps.init, setup.shapes), batch, jax.random.key(0))
    assert jax.tree.map(lambda a: a.shape, state.params) == jax.tree.map(lambda a: a.shape, setup.shapes["params"])


SMALL = [name for name, variant in CASES if variant == "smoke"]


@pytest.mark.parametrize("name", with_slow(SMALL, kept=("digits", "camvid", "timeseries", "denoise")))
def test_takes_a_step_that_moves_every_parameter(name):
    setup, batch = built(name, "smoke")
    state, sums = jax.jit(setup.steps.train)(setup.steps.init(setup.init()), batch, jax.random.key(0))
    assert np.isfinite(float(sums["loss"]))
    assert int(state.step) == 1
    before, after = (dict(leaves_with_paths(params)) for params in (setup.init()["params"], state.params))
    # What the last unit of a WaveNet passes on goes nowhere.
    config = setup.config
    last = f"unit{len(config.model.dilations) - 1}/residual" if config.model.name == "wavenet" else "none"
    moved = [not np.array_equal(before[path], after[path]) for path in before if last not in path]
    assert all(moved)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN])
def test_names_are_those_of_the_folders(name):
    assert get(name, "full").name == name
    with pytest.raises(UserError, match=rf"configs/{name}.py has no variant 'ful'.*Did you mean \"full\""):
        get(name, "ful")


def test_a_locked_config_refuses_a_misspelt_key():
    config = default_config("x").lock()
    with pytest.raises(AttributeError, match='Did you mean "batch_size"'):
        config.batch_sizes = 3


def test_model_config_knows_all_fields_of_a_model():
    assert model_config("dilated_cnn", features=(1,))["features"] == (1,)
    assert {"num_classes", "dtype", "backbone"}.isdisjoint({**model_config("separable_cnn"), **model_config("fcn_resnet50")})
    with pytest.raises(UserError, match=r"config\.model\.name='x' is unknown"):
        model_config("x")


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections reads config files with it
def test_the_list_names_every_config(root):
    lines = listing.table(root / "configs").splitlines()
    assert lines[0].split() == ["config", "task", "data", "measured", "time"]
    for name in NAMES:
        assert any(f"configs/{name}.py" in line for line in lines), name
    (digits,) = (line for line in lines if "configs/digits.py" in line)
    assert "99.0 ± 0.1 % test accuracy (seeds 0, 1, 2)" in digits
    assert " classification " in digits


def test_configs_for_own_data_are_known():
    assert tuple(name for name in NAMES if cli.takes_data(str(ROOT / "configs" / f"{name}.py"))) == OWN
    assert [get(name, "").name for name in OWN] == list(OWN)


# Config -> what writes tiny data of that kind, and what it predicts from.
TINY: dict[str, tuple[str, Any, str]] = {
    "boxes": ("my_boxes", task_cases.write_boxes, "JPEGImages/0.png"),
    "images": ("my_images", task_cases.write_images, "dark/0.png"),
    "masks": ("my_masks", task_cases.write_masks, "images/0.png"),
    "photographs": ("my_photographs", task_cases.write_photographs, "1.png"),
    "volumes": ("my_volumes", task_cases.write_volumes, "images/00.nii.gz"),
    "sounds": ("my_sounds", task_cases.write_sounds, "low/0.wav"),
    "recordings": ("my_recordings", task_cases.write_recordings, "features/video-0.npy"),
    "table": ("my_table", task_cases.write_table, "table.csv"),
    "tags": ("my_tags", task_cases.write_tagged, ""),
    "texts": ("my_text", task_cases.write_texts, "good/0.txt"),
    "text": ("my_text", task_cases.write_text, ""),
}


@pytest.mark.parametrize(("name", "folder"), [*((name, False) for name in TINY), ("table", True), ("text", True)])
def test_own_data_needs_nothing_but_its_path(name, folder, tmp_path, monkeypatch):
    """All else is as the config says, except that the run ends early; a folder with one file is as good as the file."""
    config_name, write, _ = TINY[name]
    path = write(tmp_path)
    seen: list[Any] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(loop, "run", lambda config, *args, **options: seen.append(config))
    monkeypatch.setattr(sys, "argv", ["main", f"--config=configs/{config_name}.py", f"--data={tmp_path if folder else path}"])
    main.main()
    config = seen[0]
    splits = task_class(config.task).open(config)
    build(config, splits.spec)
    assert config.batch_size <= max(8, len(splits.train) / 4)  # 8 devices
    assert 300 <= len(splits.train) / config.batch_size * config.total_epochs <= 20_000
    assert len(splits.test) and (splits.validation is None) == (not config.data.validation)


@pytest.mark.parametrize("name", with_slow(TINY, kept=("images", "recordings", "table", "tags")))
def test_own_data_is_trained_on_and_predicted_from(name, tmp_path):
    config_name, write, given = TINY[name]
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data")
    small = {
        "my_boxes": ["stem_features=4", "stage_features=(8,)", "blocks=(1,)", "features=8", "dilations=(1, 2)"],
        "my_images": ["stem_features=4", "features=(8,)", "blocks=(1,)"],
        "my_photographs": ["features=4", "dilations=(1, 2, 1)"],
        "my_recordings": ["stages=2", "features=4"],
        "my_tags": ["features=6", "embedding_features=4", "character_features=4"],
        "my_masks": ["features=(4,)", "strides=(2,)", "dilations=(2,)"],
        "my_volumes": ["features=4", "dilations=(2,)"],
    }
    words = [
        f"--config.model.{word}"
        for word in small.get(config_name, ["features=8", "dilations=(1, 2)"] if name in ("sounds", "texts") else ["features=(8, 8)"])
    ]
    words += ["--config.total_epochs=1.0", "--config.eval_every_epochs=1.0", "--config.report=false", "--config.compilation_cache_dir="]
    config = cli.load_config(str(ROOT / "configs" / f"{config_name}.py"), words, data=path)
    assert loop.run(config, tmp_path / "run") == 0
    trained = dilax.load(tmp_path / "run")
    channels = {"table": 2, "recordings": 4}.get(name)
    raw: Any = "the Rain" if name in ("text", "tags") else np.ones((40, channels)) if channels else tmp_path / "data" / given
    result = trained.predict(raw, **({"steps": 3} if name in ("text", "table") else {}))
    if name in ("images", "sounds", "texts"):
        assert result[0][0] in trained.class_names
    assert len(result) or name in ("boxes", "tags")  # of which a network that has hardly learned anything may find none


def test_the_last_layer_alone_is_finetuned(tmp_path):
    """Of a backbone whose weights come from a run on other classes."""
    for count, name in ((3, "before"), (2, "data")):
        for label in range(count):
            (tmp_path / name / f"class {label}").mkdir(parents=True)
            for i in range(10):
                pixels = np.random.default_rng((label, i)).integers(80 * label, 80 * label + 90, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"class {label}" / f"{i}.png")
    changes = [
        "data.image_size=16",
        "model.stage_features=(8,8,8,8)",
        "model.blocks=(1,1,1,1)",
        "total_epochs=1.0",
        "report=false",
        "compilation_cache_dir=",
    ]
    words = [f"--config.{change}" for change in changes]
    file = str(ROOT / "configs" / "resnet_finetune.py")
    before = cli.load_config(
        file, [*words, "--config.init_from=", "--config.head_reset=false", "--config.frozen=()"], data=str(tmp_path / "before")
    )
    assert loop.run(before, tmp_path / "pretrained") == 0
    config = cli.load_config(file, [*words, f"--config.init_from={tmp_path / 'pretrained'}"], data=str(tmp_path / "data"))
    assert loop.run(config, tmp_path / "run") == 0
    first, then = (dict(leaves_with_paths(dilax.load(tmp_path / name).variables)) for name in ("pretrained", "run"))
    same = {path for path in first if np.array_equal(first[path], then[path])}
    assert {path for path in first if path not in same} == {"params/head/kernel", "params/head/bias"}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("examples", [1, 2, 7, 16, 40, 300, 5000, 10**6])
def test_settings_follow_from_the_number_of_examples(examples, devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    config = default_config("x")
    own_data.scale_to(config, examples)
    assert config.batch_size % devices == 0 and config.batch_size <= max(examples, devices) and config.batch_size <= 32
    steps = examples / config.batch_size * config.total_epochs
    assert 396 <= steps <= 20_200 and 15 <= config.total_epochs / config.eval_every_epochs <= 25
    check(config)


@pytest.mark.parametrize(
    ("values", "expected"), [((0, 1), ()), ((0, 1, 255), ()), ((0, 255), (0, 255)), ((0, 100, 200), (0, 100, 200)), ((1, 2), ())]
)
def test_values_of_masks_are_found(values, expected, tmp_path, capsys):
    Image.fromarray(np.resize(np.array(values, np.uint8), (6, 7))).save(tmp_path / "0.png")
    assert own_data.mask_values(tmp_path, 255) == expected
    assert ("each of which is taken for a class" in capsys.readouterr().err) == bool(expected)


@pytest.mark.parametrize("name", OWN)
def test_own_data_is_asked_for(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for words, text in (
        ([], f"error: configs/{name}.py is a config for your own data; say where it is with --data PATH.\n"),
        (["--data=nowhere"], "nowhere"),
    ):
        monkeypatch.setattr(sys, "argv", ["main", f"--config=configs/{name}.py", f"--workdir={tmp_path / 'run'}", *words])
        with pytest.raises(SystemExit) as error:
            cli.run(main.main)
        assert error.value.code == 2
        err = capsys.readouterr().err
        assert text in err and err.count("\n") == 1
