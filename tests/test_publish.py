"""Published weights: they equal those of the run, their card says what they are, and they are whole or not there."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import yaml
from task_cases import CASES, tone
from tiny_runs import METRICS, flip, make_run, refused, tiny

import dilax
from dilax import loading, publishing
from train import card, cli, convert, publish, transfer
from train.build import load_trained
from train.config import from_json

safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors")

TEMPORARY = tempfile.TemporaryDirectory(prefix="dilax-publish-", ignore_cleanup_errors=True)
ROOT = pathlib.Path(TEMPORARY.name)
RUNS = ("digits", *CASES)  # the first has running statistics
# Whose card is run: one for each kind of input.
SHOWN = ("images", "masks", "table", "text", "waves", "series", "codes", "rolls")
HUB_TASKS = {
    **dict.fromkeys(("digits", "images", "pixels"), "image-classification"),
    **{
        "masks": "image-segmentation",
        "volumes": "image-segmentation",
        "photographs": "image-to-image",
        "tags": "token-classification",
        "boxes": "object-detection",
        "sounds": "audio-classification",
        "texts": "text-classification",
        "mixtures": "audio-to-audio",
    },
    **{"table": "time-series-forecasting", "text": "text-generation"},
    **dict.fromkeys(("series", "rolls", "codes", "sums", "waves", "recordings")),
}
FILES = ("README.md", "model.json", "model.safetensors")


@functools.cache
def config_of(name: str) -> ml_collections.ConfigDict:
    return tiny() if name == "digits" else CASES[name].config(ROOT / name)


@functools.cache
def published(name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The folders of a run and of its weights."""
    workdir, out = make_run(config_of(name), ROOT / name / "run"), ROOT / name / "out"
    publish.publish(workdir, out, licence="Apache-2.0", data_licence="CC-BY-4.0")
    return workdir, out


@pytest.fixture
def copied(tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(published("digits")[1], tmp_path / "copied"))


def header_of(out: pathlib.Path) -> tuple[dict[str, Any], str]:
    """The metadata of a card, and the Markdown after it."""
    _, header, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def arrays_of(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays in a file, by the definition of the format: the size of a header in JSON, the header, and the bytes of the arrays."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    kinds, found = {"F32": "<f4", "I32": "<i4", "F16": "<f2", "BOOL": "?"}, {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(content[start + begin : start + end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


def assert_identical(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert (one.dtype, one.shape, np.asarray(one).tobytes()) == (other.dtype, other.shape, np.asarray(other).tobytes())


def the_network_is_that_of_the_run(workdir: pathlib.Path, out: pathlib.Path, config: Any) -> None:
    run, loaded = dilax.load(workdir), dilax.load(str(out))
    assert_identical(loaded.variables, run.variables)
    for field in ("model", "spec", "pool", "task", "image_size"):
        assert getattr(loaded, field) == getattr(run, field)


def others_read_the_file(workdir: pathlib.Path, out: pathlib.Path, config: Any) -> None:
    variables = loading.read_variables(workdir)
    expected = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        collection, *words = (part.key for part in path)
        expected[("" if collection == "params" else collection + "/") + ".".join(words)] = leaf
    found = arrays_of(out / "model.safetensors")
    assert found.keys() == expected.keys()
    assert_identical([found[name] for name in found], [expected[name] for name in found])


def the_card_says_what_it_is(workdir: pathlib.Path, out: pathlib.Path, config: Any) -> None:
    header, text = header_of(out)
    assert (header["library_name"], header["license"]) == ("dilax", "apache-2.0")
    assert {"jax", config.model.name, config.task.replace("_", "-")} <= set(header["tags"])
    results = header["model-index"][0]["results"]
    assert {result["task"]["type"] for result in results} == {header.get("pipeline_tag", config.task.replace("_", "-"))}
    measured = {f"{result['dataset']['split']}/{metric['type']}": metric["value"] for result in results for metric in result["metrics"]}
    assert measured == {"validation/accuracy": 0.75, "validation/loss": 0.625, **METRICS}
    assert all(result["dataset"].keys() == {"type", "name", "split"} for result in results)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(loading.read_variables(workdir)["params"]))
    for words in (
        f"{parameters:,} parameters",
        "| test accuracy | 0.8125 |",
        "Seed 0; parameters of step 7;",
        "CC-BY-4.0",
        "Apache-2.0",
        "jax 0.",
    ):
        assert words in text
    assert len(code_of(text).splitlines()) == 3


def it_does_not_say_where_it_was_made(workdir: pathlib.Path, out: pathlib.Path, config: Any) -> None:
    assert sorted(os.listdir(out)) == sorted(FILES)
    for name in FILES:
        assert str(ROOT).encode() not in (out / name).read_bytes()


def it_is_fine_tuned_from_as_the_run_is(workdir: pathlib.Path, out: pathlib.Path, config: Any) -> None:
    target = jax.tree.map(np.zeros_like, loading.read_variables(workdir))
    spec = dilax.load(workdir).spec
    other = dataclasses.replace(spec, outputs=tuple(f"other {name}" for name in spec.outputs))
    merged, said = [], []
    for place in (workdir, out):
        given = ml_collections.ConfigDict({**config, "init_from": str(place)})
        with contextlib.redirect_stderr(io.StringIO()) as warned:
            tree, report = transfer.init_from(given, target, other)
        merged.append(tree)
        said.append((report + warned.getvalue()).replace(str(place), "HERE"))
    assert_identical(merged[1], merged[0])
    assert said[1] == said[0]
    assert "warning: HERE has other outputs" in said[1] or config.data.name != "folder" or config.task == "restoration"


def a_run_is_made_of_it_again(workdir: pathlib.Path, out: pathlib.Path, config: Any) -> None:
    again = ROOT / "again" / out.parent.name
    assert convert.convert("dilax", out, again).startswith(f"{again}: {config.model.name}, ")
    the_network_is_that_of_the_run(workdir, again, config)
    trained, expected = load_trained(again), load_trained(workdir)
    assert_identical(trained.inference.variables, expected.inference.variables)
    assert trained.setup.steps.model == expected.setup.steps.model
    publish.publish(again, again.with_name(f"{again.name}-out"), licence="Apache-2.0", data_licence="CC-BY-4.0")
    published_again = [(folder / "model.safetensors").read_bytes() for folder in (again.with_name(f"{again.name}-out"), out)]
    assert published_again[0] == published_again[1]
    described = [json.loads((folder / "model.json").read_text()) for folder in (again.with_name(f"{again.name}-out"), out)]
    for key in ("model", "data", "task", "pool", "image_size", "metrics", "checksum", "parameters"):
        assert described[0].get(key) == described[1].get(key)


LAWS = (
    the_network_is_that_of_the_run,
    others_read_the_file,
    the_card_says_what_it_is,
    it_does_not_say_where_it_was_made,
    it_is_fine_tuned_from_as_the_run_is,
    a_run_is_made_of_it_again,
)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(law, name):
    law(*published(name), config_of(name))


def test_a_run_is_made_of_weights_and_a_config(tmp_path):
    workdir, out = published("digits")
    variables = loading.read_variables(workdir)
    variables["params"]["head"]["bias"] = variables["params"]["head"]["bias"] + 1
    dilax.save_weights(variables, tmp_path / "mine.safetensors")
    config = from_json((workdir / "config.json").read_text())
    assert convert.convert("dilax", tmp_path / "mine.safetensors", tmp_path / "run", config).startswith(f"{tmp_path / 'run'}: ")
    assert_identical(load_trained(tmp_path / "run").inference.variables, variables)
    # The file of a published folder is described there.
    convert.convert("dilax", out / "model.safetensors", tmp_path / "other")
    the_network_is_that_of_the_run(workdir, tmp_path / "other", config)


CONVERSIONS: dict[str, tuple[Callable[[pathlib.Path], Any], dict[str, Any] | None, str]] = {
    "a file alone": (
        lambda path: path / "w.safetensors",
        None,
        "{0} does not say which network it is for; give --config=FILE of its run, or a published folder.",
    ),
    "no description": (
        lambda path: path,
        None,
        "{0} does not hold published weights (it has no model.json); give what train.publish wrote.",
    ),
    "another network": (
        lambda path: path / "w.safetensors",
        {"model.features": (4, 7)},
        "{0} does not fit the network of the config: it batch_stats/ConvNormAct_1/Norm_0/BatchNorm_0/mean is [6], not [7]; ",
    ),
    "another task": (
        lambda path: published("digits")[1],
        None,
        "--config is for the task sequence_classification, and the weights are for classification; give the config of their run.",
    ),
    "no file": (lambda path: path / "none.safetensors", {}, "{0} does not exist; give a .safetensors file."),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_no_run_is_made_of(name, tmp_path):
    place, changes, text = CONVERSIONS[name]
    dilax.save_weights(loading.read_variables(published("digits")[0]), tmp_path / "w.safetensors")
    base = config_of("series") if name == "another task" else None if changes is None else tiny(**changes)
    said = refused(lambda: convert.convert("dilax", place(tmp_path), tmp_path / "run", base))
    assert said.startswith(text.format(place(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def code_of(text: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return code


@pytest.mark.parametrize("name", SHOWN)
def test_the_code_of_a_card_runs(name, tmp_path, monkeypatch):
    from PIL import Image

    from train.data.readers import sound

    workdir, out = published(name)
    shutil.copytree(out, tmp_path / out.name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).save(tmp_path / "image.png")
    sound.write_wav(tmp_path / "sound.wav", tone(300, 400, 0), 8000)
    monkeypatch.chdir(tmp_path)
    *setup, call = code_of(header_of(out)[1]).splitlines()
    known: dict[str, Any] = {}
    exec("\n".join(setup), known)
    result = eval(call, known)
    expected = eval(call, {**known, "model": dilax.load(workdir)})
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tasks_are_called_as_on_the_hub():
    found = {name: header_of(published(name)[1])[0].get("pipeline_tag") for name in RUNS}
    assert found == HUB_TASKS


def test_batch_statistics_stand_beside_the_parameters():
    names = arrays_of(published("digits")[1] / "model.safetensors")
    assert {"ConvNormAct_0.DilatedConv_0.kernel", "batch_stats/ConvNormAct_0.Norm_0.BatchNorm_0.mean", "head.bias"} <= names.keys()


def swap_weights(copied: pathlib.Path) -> None:
    other = make_run(tiny(**{"model.features": (4, 7)}), copied.parent / "other")
    dilax.save_weights(loading.read_variables(other), copied / "model.safetensors")


def other_values(copied: pathlib.Path) -> None:
    variables = dilax.read_weights(copied / "model.safetensors")
    variables["params"]["head"]["bias"] = variables["params"]["head"]["bias"] + 1
    dilax.save_weights(variables, copied / "model.safetensors")


def half_precision(copied: pathlib.Path) -> None:
    variables = dilax.read_weights(copied / "model.safetensors")
    variables["params"]["head"]["bias"] = variables["params"]["head"]["bias"].astype(np.float16)
    dilax.save_weights(variables, copied / "model.safetensors")


def change(**values: Any) -> Callable[[pathlib.Path], None]:
    """Change values of model.json, and keep its checksum right."""

    def damage(copied: pathlib.Path) -> None:
        described = {**json.loads((copied / "model.json").read_text()), **values}
        (copied / "model.json").write_text(json.dumps({**described, "seal": loading.seal(described)}))

    return damage


def edit(old: str, new: str, *, sealed: bool = False) -> Callable[[pathlib.Path], None]:
    """Change the text of model.json, and make its checksum right if it is to be `sealed`."""

    def damage(copied: pathlib.Path) -> None:
        text = (copied / "model.json").read_text()
        assert old in text
        (copied / "model.json").write_text(text.replace(old, new, 1))
        if sealed:
            change()(copied)

    return damage


AGAIN = "download the folder again, or publish the run again."
DAMAGE: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "no weights": (lambda path: (path / "model.safetensors").unlink(), f"{{0}} has lost its model.safetensors; {AGAIN}"),
    "no description": (
        lambda path: (path / "model.json").unlink(),
        "{0} does not hold a run or published weights; train one with `python -m train.main --config=... --workdir={0}`.",
    ),
    "weights of another model": (
        swap_weights,
        "{0}/model.safetensors does not fit the model that model.json describes: it batch_stats/ConvNormAct_1/Norm_0/BatchNorm_0/mean is [7], "
        "not [6]; ",
    ),
    "weights of another dtype": (
        half_precision,
        "{0}/model.safetensors does not fit the model that model.json describes: it params/head/bias is float16, not float32. Both must come "
        f"from the same folder; {AGAIN}",
    ),
    "other values": (other_values, f"{{0}}/model.safetensors is damaged (its checksum is not the one in model.json); {AGAIN}"),
    "truncated weights": (
        lambda path: (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-5]),
        "{0}/model.safetensors is damaged or is not a .safetensors file (",
    ),
    "an edited description": (edit('"digits8x8"', '"digits9x9"'), f"{{0}}/model.json is damaged (it does not match its checksum); {AGAIN}"),
    "a truncated description": (edit('"seal"', '"se'), "{0}/model.json is damaged ("),
    "another format": (change(format=9), "{0}/model.json is of format 9, and this version of dilax reads format 1; "),
    "an unknown model": (change(model={"name": "dilated_cn"}), "models.create: unknown model 'dilated_cn'; "),
    "no data": (change(data=3), f"{{0}}/model.json is damaged (it does not describe the data and the model); {AGAIN}"),
    "a class more": (
        edit('"0",', '"0", "ten",', sealed=True),
        f"{{0}}/model.json is damaged (num_classes is 10, and outputs has 11 names); {AGAIN}",
    ),
    "a number for a name": (edit('"7"', "7", sealed=True), f"{{0}}/model.json is damaged (outputs is of the wrong type); {AGAIN}"),
    "a size for a name": (edit('"input_shape": [', '"input_shape": ["a", ', sealed=True), "{0}/model.json is damaged (input_shape is "),
    "a wrong type": (change(pool=3), f"{{0}}/model.json is damaged (pool is of the wrong type); {AGAIN}"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(name, copied):
    damage, text = DAMAGE[name]
    damage(copied)
    said = refused(lambda: dilax.load(copied))
    assert said.startswith(text.format(copied))
    assert said == text.format(copied) or not text.endswith(".")
    if "hold" not in text:  # a folder without a description is that of a run, perhaps
        assert refused(lambda: loading.read_variables(copied)) == said


def test_what_is_changed_on_purpose_is_read(copied):
    """Without its seal a description may be edited."""
    described = json.loads((copied / "model.json").read_text())
    described["data"]["outputs"][3] = "three"
    del described["seal"]
    (copied / "model.json").write_text(json.dumps(described))
    assert dilax.load(copied).class_names[3] == "three"


@pytest.mark.parametrize("file", ["model.json", "model.safetensors"])
def test_a_flipped_bit_is_found(file, copied):
    expected, whole = dilax.load(copied).variables, (copied / file).read_bytes()
    found = 0
    for place in np.linspace(0, 1, 41)[:-1]:
        flip(copied / file, place=place)
        try:
            loaded = dilax.load(copied)
        except dilax.UserError:
            found += 1
        else:  # it was in what is not read, such as a blank
            assert_identical(loaded.variables, expected)
        (copied / file).write_bytes(whole)
    assert found >= 35


def test_published_weights_start_another_run(tmp_path, capsys):
    from train import loop

    config = tiny(init_from=str(published("digits")[1]), total_epochs=0.1)
    assert loop.run(config, tmp_path / "run") == 0
    report = (tmp_path / "run" / "init_from.txt").read_text()
    assert re.match(r"init_from .*out: loaded (\d+) of \1 leaves", report)


# What --out may be, and what is said of it.
OUTS: dict[str, tuple[Callable[[pathlib.Path], Any], str | None]] = {
    "new": (lambda out: None, None),
    "in a new folder": (lambda out: None, None),
    "empty": (lambda out: out.mkdir(), None),
    "a link to an empty folder": (lambda out: ((out.parent / "real").mkdir(), out.symlink_to(out.parent / "real")), None),
    "not empty": (
        lambda out: (out.mkdir(), (out / "a.txt").write_text("x")),
        "--out={0} exists and is not empty; give a new or an empty folder.",
    ),
    "a file": (lambda out: out.write_text("x"), "--out={0} is not a folder; give a new or an empty folder."),
    "a broken link": (lambda out: out.symlink_to("nowhere"), "--out={0} is not a folder; give a new or an empty folder."),
}


@pytest.mark.parametrize("name", OUTS)
def test_where_it_is_written(name, tmp_path):
    prepare, text = OUTS[name]
    out = tmp_path / "a" / "b" if name == "in a new folder" else tmp_path / "out"
    prepare(out)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    if text is None:
        publish.publish(published("digits")[0], out)
        assert sorted(os.listdir(out)) == sorted(FILES)
        assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()
        assert {path.name for path in tmp_path.rglob("*")} <= {*FILES, "a", "b", "out", "real"}
    else:
        assert refused(lambda: publish.publish(published("digits")[0], out)) == text.format(out)
        assert sorted(path.name for path in tmp_path.rglob("*")) == before


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("part", ["model.safetensors", "model.json", "README.md"])
def test_nothing_is_left_of_what_fails(part, tmp_path, monkeypatch):
    """As on a full disk, at the end of each file."""
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if pathlib.Path(target).name == part:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    text = refused(lambda: publish.publish(published("digits")[0], tmp_path / "out"))
    assert "cannot be written: No space left on device; fix that" in text
    assert list(tmp_path.iterdir()) == []


def run_cli(monkeypatch, capsys, *words: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["publish", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        cli.run(publish.main)
    return (int(exit.value.code or 0), *capsys.readouterr())


def test_what_is_printed(tmp_path, monkeypatch, capsys):
    workdir, out = published("digits")[0], tmp_path / "out"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(loading.read_variables(workdir)["params"]))
    code, said, err = run_cli(monkeypatch, capsys, "--workdir", workdir, "--out", out)
    metrics = "validation/accuracy 0.7500, validation/loss 0.6250, test/accuracy 0.8125, test/loss 0.5312"
    assert (code, said, err) == (0, f"{out}: dilated_cnn, {parameters:,} parameters, {metrics}\n", "")
    header, text = header_of(out)
    assert header["license"] == "unknown"
    assert text.count("not stated") == 2


def test_a_run_that_is_not_finished(tmp_path, monkeypatch, capsys):
    workdir, out = make_run(tiny(), tmp_path / "run", finished=False), tmp_path / "out"
    code, said, err = run_cli(monkeypatch, capsys, "--workdir", workdir, "--out", out, "--licence", "My own, v2")
    assert (code, "test/" in said) == (0, False)
    assert err == "note: the run is not finished; these are its best parameters so far, of step 7, not scored on the test split.\n"
    header, text = header_of(out)
    assert {result["dataset"]["split"] for result in header["model-index"][0]["results"]} == {"validation"}
    assert (header["license"], header["license_name"]) == ("other", "my-own-v2")
    assert "The run was not finished when its weights were published" in text
    assert "Nothing was measured on a test split." in text
    assert_identical(dilax.load(out).variables, dilax.load(workdir).variables)


def test_parameters_in_half_precision(tmp_path):
    """The file is about half as large, and a reader gets float32 again; running statistics are not rounded."""
    workdir, whole = published("digits")
    out = tmp_path / "half"
    publish.publish(workdir, out, stored="float16")
    run, loaded = dilax.load(workdir).variables, dilax.load(out).variables
    rounded = jax.tree.map(lambda leaf: np.float32(np.float16(leaf)), run["params"])
    assert_identical(loaded, {**run, "params": rounded})
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, whole)]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run["params"]))
    assert sizes[1] - sizes[0] == pytest.approx(2 * parameters, abs=64)  # the header says F16, and is padded
    assert "the parameters in float16" in (out / "README.md").read_text()


def test_parameters_beyond_half_precision_are_refused(tmp_path):
    workdir = make_run(tiny(), tmp_path / "run", scale=1e5)
    said = refused(lambda: publish.publish(workdir, tmp_path / "out", stored="float16"))
    assert re.fullmatch(r"--stored=float16: the parameter [\w.]+ has values that float16 cannot hold; leave the flag out\.", said)
    assert not (tmp_path / "out").exists()


def test_a_run_that_nothing_was_measured_of(tmp_path):
    """As train.convert makes one."""
    workdir = make_run(tiny(), tmp_path / "run")
    status = json.loads((workdir / "run.json").read_text())
    for key in ("train_seconds", "step", "seal"):
        del status[key]
    status["metrics"] = {"test/accuracy": float("nan")}
    (workdir / "run.json").write_text(json.dumps(status))
    publish.publish(workdir, tmp_path / "out")
    header, text = header_of(tmp_path / "out")
    assert [result["dataset"]["split"] for result in header["model-index"][0]["results"]] == ["validation"]
    assert "| test accuracy | not finite |" in text
    assert "Seed" not in text
    json.loads((tmp_path / "out" / "model.json").read_text(), parse_constant=pytest.fail)


def test_a_run_whose_weights_are_of_another_model(tmp_path):
    workdir = make_run(tiny(), tmp_path / "run")
    status = json.loads((workdir / "run.json").read_text())
    status["model"]["features"] = [4, 7]
    (workdir / "run.json").write_text(json.dumps({**status, "seal": loading.seal(status)}))
    said = refused(lambda: publish.publish(workdir, tmp_path / "out"))
    assert said.startswith(f"the checkpoint in {workdir} is of another model or optimiser: it batch_stats/")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys):
    workdir, out, none = published("digits")[0], tmp_path / "out", tmp_path / "none"
    early = make_run(tiny(), tmp_path / "early", finished=False)
    shutil.rmtree(early / "best")
    for words, text in (
        (["--workdir", workdir], "the following arguments are required: --out; see --help."),
        (
            ["--workdir", none, "--out", out],
            f"--workdir={none} does not hold a run; train one with `python -m train.main --config=... --workdir={none}`.",
        ),
        (
            ["--workdir", early, "--out", out],
            f"{early} does not hold a trained run (it has no best/); train one there, or give the folder of another run.",
        ),
        (
            ["--workdir", published("digits")[1], "--out", out],
            f"--workdir={published('digits')[1]} holds published weights, not a run; predict with dilax.load in Python, give it as "
            "--config.init_from to train from them, or make a run of them with train.convert --from dilax.",
        ),
        (
            ["--workdir", workdir, "--out", out, "--licence="],
            "a licence is empty; give its name, such as Apache-2.0, or leave the flag out.",
        ),
    ):
        assert run_cli(monkeypatch, capsys, *words) == (2, "", f"error: {text}\n")
    assert not out.exists()


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    workdir, out = published("digits")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    remedy = 'requires safetensors; run: pip install "dilax-conv[weights]".'
    assert refused(lambda: publish.publish(workdir, tmp_path / "out")) == f"save_weights: writing .safetensors files {remedy}"
    assert refused(lambda: dilax.load(out)) == f"{out / 'model.safetensors'} cannot be read: reading .safetensors files {remedy}"
    assert not (tmp_path / "out").exists()


TREES: dict[str, dict[str, Any]] = {
    "dtypes": {"params": {"a": {name: np.arange(-2, 4).reshape(2, 3).astype(name) for name in sorted(publishing._DTYPES)}}},
    "shapes": {"params": {"scalar": np.float32(3), "none": np.zeros((0, 4)), "axes": np.arange(24.0).reshape(2, 1, 3, 4)}},
    "layouts": {"params": {"turned": np.arange(6.0).reshape(2, 3).T, "apart": np.arange(9)[::2], "big": np.arange(4, dtype=">f4")}},
    "collections": {"params": {"batch_stats": {"a": np.ones(2)}}, "batch_stats": {"a": np.zeros(2)}, "cache": {"x": {"y": np.ones(3)}}},
    "of JAX": {"params": {"a": jnp.arange(5), "b": {"c": jnp.linspace(0, 1, 7)}}},
}


@pytest.mark.parametrize("name", TREES)
def test_variables_come_back(name, tmp_path):
    dilax.save_weights(TREES[name], tmp_path / "w.safetensors")
    found = dilax.read_weights(str(tmp_path / "w.safetensors"))
    assert_identical(found, jax.tree.map(lambda leaf: np.asarray(leaf).astype(leaf.dtype.newbyteorder("=")), TREES[name]))


ONE = np.ones(2, np.float32)
WRONG: dict[str, tuple[Any, str]] = {
    "not a dict": ([ONE], "variables=[<array of shape (2,), dtype float32>] are not a dict; give {\"params\": ...}, as from model.init."),
    "no arrays": ({"params": {}}, 'variables hold no arrays; give {"params": ...}, as from model.init.'),
    "no collection": ({"kernel": ONE}, "variables hold 'kernel' outside of a collection; give {\"params\": ...}, as from model.init."),
    "a dot": ({"params": {"a.b": ONE}}, "'params/a.b' has a name that is empty, no text, or has a dot or a slash; rename that module."),
    "a number": ({"params": {0: ONE}}, "'params/0' has a name that is empty, no text, or has a dot or a slash; rename that module."),
    "a text": ({"params": {"a": "x"}}, "'params/a' is of dtype str, which the format lacks; convert it, such as by astype('float32')."),
    "a key": (
        {"params": {"a": jax.random.key(0)}},
        "'params/a' is of dtype key<fry>, which the format lacks; convert it, such as by astype('float32').",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_variables_that_cannot_be_written(name, tmp_path):
    variables, text = WRONG[name]
    assert refused(lambda: dilax.save_weights(variables, tmp_path / "w.safetensors")) == f"save_weights: {text}"
    assert list(tmp_path.iterdir()) == []


def test_paths_of_weights(tmp_path):
    good = {"params": {"a": ONE}}
    assert (
        refused(lambda: dilax.save_weights(good, "w.npz"))
        == "save_weights: path='w.npz' does not end in .safetensors; give a name that does."
    )
    path = tmp_path / "none" / "w.safetensors"
    assert (
        refused(lambda: dilax.save_weights(good, path))
        == f"{path} cannot be written: No such file or directory; fix that, or give another path."
    )
    (tmp_path / "folder.safetensors").mkdir()
    assert "folder.safetensors cannot be written: Is a directory" in refused(
        lambda: dilax.save_weights(good, tmp_path / "folder.safetensors")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]
    assert refused(lambda: dilax.read_weights(path)) == f"{path} does not exist; give a .safetensors file."
    for names in (("a", "a.b"), ("a..b",)):
        safetensors.save_file(dict.fromkeys(names, ONE), tmp_path / "w.safetensors")
        text = "w.safetensors does not hold the variables of a Flax module; give a file that save_weights or train.publish wrote."
        assert refused(lambda: dilax.read_weights(tmp_path / "w.safetensors")).endswith(text)


@pytest.mark.parametrize("licence", ["Apache-2.0", "mit", "CC-BY-4.0", card.NOT_STATED, 'Ask: me | "quoted"', "# none"])
def test_a_card_of_any_words_is_read_back(licence, copied):
    described = json.loads((copied / "model.json").read_text())
    described["name"], described["data"]["outputs"] = "a: [b] | c", [f"class {i} | `x`" for i in range(30)]
    text = card.card(described, "a\n# b | c", 'fol\'der "x"', hub_task="", licence=licence, data_licence=licence, stored="float32")
    (copied / "README.md").write_text(text)
    header, body = header_of(copied)
    assert header["model-index"][0]["name"] == "a: [b] | c"
    assert "and 10 more" in body
    assert eval(code_of(body).splitlines()[1].partition("load(")[2].partition(")")[0]) == 'fol\'der "x"'
    known = {"Apache-2.0": "apache-2.0", "mit": "mit", "CC-BY-4.0": "cc-by-4.0", card.NOT_STATED: "unknown"}
    assert header["license"] == known.get(licence, "other")
    assert ("license_name" in header) == (licence not in known)


@pytest.mark.parametrize("address", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a b/c", "hf:https://x/y"])
def test_addresses_on_the_hub(address):
    text = f"load: folder={address!r} is not of the form hf:owner/name or hf:owner/name@revision; give such a name."
    assert refused(lambda: dilax.load(address)) == text


def test_the_hub_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    text = 'hf:a/b: fetching it requires huggingface_hub; run: pip install "dilax-conv[hub]".'
    assert refused(lambda: dilax.load("hf:a/b")) == text
    assert refused(lambda: transfer.init_from(tiny(init_from="hf:a/b"), {}, dilax.DataSpec("", (), ()))) == text


def test_what_is_asked_of_the_hub(tmp_path, monkeypatch):
    """By a stand-in for its library: the name, the revision, and the two files."""
    asked, answers = [], iter([published("digits")[1], tmp_path])

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(next(answers))

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert_identical(dilax.load("hf:owner/some.name").variables, dilax.load(published("digits")[0]).variables)
    text = "hf:owner/name@v1.0 does not hold weights that train.publish wrote (it has no model.json); give another name."
    assert refused(lambda: dilax.load("hf:owner/name@v1.0")) == text
    files = ["model.safetensors", "model.json"]
    assert asked == [
        ("owner/some.name", {"revision": None, "allow_patterns": files}),
        ("owner/name", {"revision": "v1.0", "allow_patterns": files}),
    ]


def test_the_cache_of_the_hub(tmp_path, monkeypatch):
    """By its library, without a network: what is in its cache is read, and what is not is one line."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    from huggingface_hub import constants  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit, place = "a" * 40, tmp_path / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(published("digits")[1], place / "snapshots" / commit)
    for address in ("hf:owner/name", "hf:owner/name@main", f"hf:owner/name@{commit}"):
        assert_identical(dilax.load(address).variables, dilax.load(published("digits")[0]).variables)
    for address in ("hf:owner/other", "hf:owner/name@v2"):
        said = refused(lambda address=address: dilax.load(address))
        assert said.startswith(f"{address} could not be fetched from the Hugging Face Hub (")
        assert said.endswith("); check the name, the network, and for a private model that you are logged in.")
