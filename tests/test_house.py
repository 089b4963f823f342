"""The structure of the code: imports point down, heavy libraries are imported where they are used, public names are documented."""

import ast
import inspect
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

import dilax

ROOT = pathlib.Path(__file__).parents[1]
# In the order of imports: a file may import those before it.
DILAX = [
    "dilax.errors",
    "dilax.files",
    "dilax.arguments",
    "dilax.annotated",
    "dilax.spec",
    "dilax.precision",
    "dilax.geometry",
    "dilax.plan",
    "dilax.whole",
    "dilax.rounding",
    "dilax.partitioning",
    "dilax.lowerings.xla",
    "dilax.lowerings.taps",
    "dilax.lowerings.patches",
    "dilax.lowerings.split",
    "dilax.lowerings.products",
    "dilax.lowerings.planes",
    "dilax.lowerings.onednn",
    "dilax.lowerings.registry",
    "dilax.lowerings.sharded",
    "dilax.lowerings.primitives",
    "dilax.lowerings",
    "dilax.axis_operations",
    "dilax.autotuning",
    "dilax.functional",
    "dilax.pooling",
    "dilax.receptive_fields.reach",
    "dilax.receptive_fields.composition",
    "dilax.receptive_fields.bands",
    "dilax.receptive_fields.jaxprs",
    "dilax.receptive_fields.constants",
    "dilax.receptive_fields.views",
    "dilax.receptive_fields.windows",
    "dilax.receptive_fields.contractions",
    "dilax.receptive_fields.joins",
    "dilax.receptive_fields.updates",
    "dilax.receptive_fields.reshapes",
    "dilax.receptive_fields.rules",
    "dilax.receptive_fields.analysis",
    "dilax.receptive_fields.effective",
    "dilax.receptive_fields.dilations",
    "dilax.receptive_fields",
    "dilax.resizing",
    "dilax.audio",
    "dilax.tile_plans",
    "dilax.tile_checks",
    "dilax.tiling",
    "dilax.state_dicts",
    "dilax.streaming.rings",
    "dilax.streaming.flow",
    "dilax.streaming.checks",
    "dilax.streaming",
    "dilax.convolution",
    "dilax.modules",
    "dilax.smoothing",
    "dilax.spacings",
    "dilax.causal",
    "dilax.blocks.norm",
    "dilax.blocks.sequences",
    "dilax.blocks.conv",
    "dilax.blocks",
    "dilax.context",
    "dilax.losses",
    "dilax.boxes",
    "dilax.anchors",
    "dilax.detection_losses",
    "dilax.metrics",
    "dilax.segments",
    "dilax.crf",
    "dilax.tagging",
    "dilax.detection_metrics",
    "dilax.models.backbone",
    "dilax.models.cnn",
    "dilax.models.resnet",
    "dilax.models.densenet",
    "dilax.models.drn",
    "dilax.models.mobilenet",
    "dilax.models.mobilenet_v3",
    "dilax.models.efficientnet",
    "dilax.models.xception",
    "dilax.models.segmenter",
    "dilax.models.fully_convolutional",
    "dilax.models.deeplab",
    "dilax.models.fcn",
    "dilax.models.tcn",
    "dilax.models.ms_tcn",
    "dilax.models.id_cnn",
    "dilax.models.wavenet",
    "dilax.models.bytenet",
    "dilax.models.separable_tcn",
    "dilax.models.conv_tasnet",
    "dilax.models.gated_dilated_cnn",
    "dilax.models.unet",
    "dilax.models.ircnn",
    "dilax.models.meshnet",
    "dilax.models.highres3dnet",
    "dilax.models.detector",
    "dilax.models.separable_detector",
    "dilax.models.pyramid",
    "dilax.models.retinanet",
    "dilax.models.fcos",
    "dilax.models.yolof",
    "dilax.models.trident",
    "dilax.models",
    "dilax.weights",
    "dilax.pruning.labels",
    "dilax.pruning.operations",
    "dilax.pruning.follow",
    "dilax.pruning.selection",
    "dilax.pruning.pruned",
    "dilax.pruning.removal",
    "dilax.pruning",
    "dilax.generate",
    "dilax.sounds",
    "dilax.volumes",
    "dilax.views",
    "dilax.inputs",
    "dilax.restoring",
    "dilax.detection",
    "dilax.inference.predictor",
    "dilax.inference.images",
    "dilax.inference.sequences",
    "dilax.inference",
    "dilax.publishing",
    "dilax.loading",
    "dilax.export.packages",
    "dilax.export.ports",
    "dilax.export.streams",
    "dilax.export.stablehlo",
    "dilax.export.onnx_operations",
    "dilax.export.onnx_rewrites",
    "dilax.export.onnx",
    "dilax.export.tflite_operations",
    "dilax.export.tflite",
    "dilax.export.onnx_quantised",
    "dilax.export.tflite_quantised",
    "dilax.export.quantised",
    "dilax.export",
    "dilax.quantisation",
    "dilax.data_flow",
    "dilax.folding",
    "dilax.summary",
    "dilax.profiling",
    "dilax.plots.canvas",
    "dilax.plots.dilation",
    "dilax.plots.fields",
    "dilax.plots.layers",
    "dilax.plots.restoration",
    "dilax.plots.segmentation",
    "dilax.plots.detection",
    "dilax.plots.sequences",
    "dilax.plots.training",
    "dilax.plots.volumes",
    "dilax.plots",
    "dilax",
]
TRAIN = [
    "train",
    "train.keys",
    "train.runtime",
    "train.aborts",
    "train.hosts",
    "train.stopper",
    "train.files",
    "train.writers",
    "train.progress",
    "train.report",
    "train.card",
    "train.data.source",
    "train.data.windows",
    "train.data.scaling",
    "train.data.splits",
    "train.data.fingerprint",
    "train.data.batches",
    "train.data",
    "train.data.augment.options",
    "train.data.augment.pixels",
    "train.data.augment.geometry",
    "train.data.augment.examples",
    "train.data.augment",
    "train.data.mel",
    "train.data.readers.files",
    "train.data.readers.images",
    "train.data.image_windows",
    "train.data.jpeg",
    "train.data.degradations",
    "train.data.readers.masks",
    "train.data.readers.boxes",
    "train.data.readers.packaged",
    "train.data.readers.photographs",
    "train.data.readers.text",
    "train.data.readers.lists",
    "train.data.readers.pairs",
    "train.data.readers.mask_folders",
    "train.data.readers.volumes",
    "train.data.readers.ellipsoids",
    "train.data.readers.cells",
    "train.data.readers.archives",
    "train.data.readers.downloads",
    "train.data.readers.tfds",
    "train.data.readers.sound",
    "train.data.readers.values",
    "train.data.readers.tables",
    "train.data.readers.series",
    "train.data.readers.mat",
    "train.data.readers.piano",
    "train.data.readers.recordings",
    "train.data.readers.conll",
    "train.data.readers.mixtures",
    "train.data.readers.made_up",
    "train.data.readers.shapes",
    "train.data.readers.voc",
    "train.data.readers.coco",
    "train.data.image_sets",
    "train.data.box_sets",
    "train.tasks.portable",
    "train.tasks.base",
    "train.tasks.images",
    "train.tasks.steps",
    "train.tasks.streams",
    "train.tasks.classification",
    "train.tasks.segmentation_losses",
    "train.tasks.segmentation_scores",
    "train.tasks.segmentation_files",
    "train.tasks.segmentation",
    "train.tasks.detection",
    "train.tasks.sequence_classification",
    "train.tasks.sequence_prediction",
    "train.tasks.language_model",
    "train.tasks.waveform",
    "train.tasks.separation",
    "train.tasks.restored_windows",
    "train.tasks.restoration",
    "train.tasks.actions",
    "train.tasks.tags",
    "train.tasks.sequence_labelling",
    "train.tasks",
    "train.optim",
    "train.config",
    "train.interception",
    "train.step",
    "train.parallel",
    "train.own_data",
    "train.checkpoint",
    "train.folder",
    "train.transfer",
    "train.distil",
    "train.build",
    "train.estimate",
    "train.score",
    "train.finish",
    "train.loop",
    "train.cli",
    "train.listing",
    "train.convert",
    "train.publish",
    "train.evaluate",
    "train.prune",
    "train.quantised",
    "train.export",
    "train.profile",
    "train.replay",
    "train.predict",
    "train.prepare",
    "train.main",
]
HEAVY = {
    "matplotlib",
    "orbax",
    "tensorflow_datasets",
    "grain",
    "PIL",
    "tensorboardX",
    "tqdm",
    "sklearn",
    "torch",
    "optax",
    "safetensors",
    "soundfile",
    "soxr",
    "pandas",
    "scipy",
    "nibabel",
    "flatbuffers",
    "jax2onnx",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "litert_converter",
    "ai_edge_litert",
    "ai_edge_quantizer",
}
TRAIN_ALWAYS = {"optax"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(folder: str) -> list[pathlib.Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_the_order_names_every_file():
    assert sorted(map(module_name, files("dilax"))) == sorted(DILAX)


@pytest.mark.parametrize("path", files("dilax"), ids=module_name)
def test_dilax_imports_point_down(path):
    name = module_name(path)
    # A file of a package may name the package to import its neighbours.
    ours = {found for found in imports(path) if found in DILAX and found != "dilax" and not f"{name}.".startswith(f"{found}.")}
    assert {found for found in ours if DILAX.index(found) >= DILAX.index(name)} == set()
    assert {found for found in imports(path) if found.split(".")[0] in ("train", "configs", "tests")} == set()


def test_the_order_of_train_names_every_file():
    assert sorted(map(module_name, files("train"))) == sorted(TRAIN)


@pytest.mark.parametrize("path", files("train"), ids=module_name)
def test_train_imports_point_down(path):
    name = module_name(path)
    ours = {found for found in imports(path) if found in TRAIN and found != "train" and not f"{name}.".startswith(f"{found}.")}
    assert {found for found in ours if TRAIN.index(found) >= TRAIN.index(name)} == set()
    assert {found for found in imports(path) if found.split(".")[0] == "tests"} == set()


def test_the_step_knows_the_contract_of_a_task_alone():
    assert {found for found in imports(ROOT / "train" / "step.py") if found.startswith("train.tasks")} <= {
        "train.tasks.base",
        *(f"train.tasks.base.{name}" for name in ("Batch", "Loss", "Task")),
    }


@pytest.mark.parametrize("path", [path for path in files("train") if "tasks" not in path.parts], ids=module_name)
def test_only_tasks_name_a_task(path):
    from train.tasks import TASKS

    tree = ast.parse(path.read_text())
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    }
    # The task that a config has unless it names another is the one name outside.
    assert words & set(TASKS) <= ({"classification"} if path.name == "config.py" else set())
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("config.task")]
    assert compared == []


@pytest.mark.parametrize("path", files("dilax") + files("train") + files("configs"), ids=module_name)
def test_heavy_imports_are_inside_functions(path):
    allowed = set() if "dilax" in path.relative_to(ROOT).parts else TRAIN_ALWAYS
    assert {found.split(".")[0] for found in imports(path, top_only=True)} & HEAVY <= allowed


def test_matplotlib_is_in_plots_alone():
    users = {module_name(path) for path in files("dilax") + files("train") if any("matplotlib" in name for name in imports(path))}
    assert {name.removeprefix("dilax.plots.") for name in users} == {
        "canvas",
        "detection",
        "dilation",
        "fields",
        "layers",
        "restoration",
        "segmentation",
        "sequences",
        "training",
        "volumes",
    }


def test_import_dilax_loads_nothing_heavy_and_is_quick():
    code = (
        "import time, sys; times = [time.process_time()]; import flax.linen; times.append(time.process_time()); import dilax;"
        "times.append(time.process_time()); print((times[2] - times[1]) / (times[1] - times[0]), ','.join(sys.modules))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(2)]
    # A seventh of what Flax takes; half of it is the fields of modules, of which there are hundreds.
    assert min(float(run.split()[0]) for run in runs) < 0.25
    assert {name.split(".")[0] for name in runs[0].split()[1].split(",")} & (HEAVY - {"tqdm"}) <= preloaded()


def preloaded() -> set[str]:
    """The modules that flax.linen loads."""
    code = "import sys, flax.linen; print(','.join(sys.modules))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in text.strip().split(",")}


def test_public_names_exist_and_are_documented():
    for name in dilax.__all__:
        thing = getattr(dilax, name)
        if callable(thing):
            assert inspect.getdoc(thing), name
            assert (
                "Example" in (inspect.getdoc(thing) or "") or inspect.isclass(thing) or name in ("explicit_padding", "select_lowering")
            ), name
    assert sorted(dilax.__all__) == sorted(set(dilax.__all__))


def test_no_public_function_takes_loose_keywords():
    takers = {
        name for name in dilax.__all__ if inspect.isfunction(getattr(dilax, name)) and "**" in str(inspect.signature(getattr(dilax, name)))
    }
    assert takers == set()


def public_functions() -> dict[str, Callable]:
    """The functions in the public list and in its modules, and the methods of its classes."""
    things = {name: getattr(dilax, name) for name in dilax.__all__}
    for name, module in [(name, thing) for name, thing in things.items() if inspect.ismodule(thing)]:
        listed = getattr(module, "__all__", [each for each in vars(module) if not each.startswith("_")])
        ours = {each: getattr(module, each) for each in listed}
        things |= {f"{name}.{each}": thing for each, thing in ours.items() if getattr(thing, "__module__", "").startswith(module.__name__)}
    functions = {name: thing for name, thing in things.items() if inspect.isfunction(thing)}
    for name, thing in things.items():
        if inspect.isclass(thing):
            methods = {each: inspect.unwrap(getattr(method, "__func__", method)) for each, method in vars(thing).items()}
            ours = {
                each: method for each, method in methods.items() if inspect.isfunction(method) and method.__module__ == thing.__module__
            }
            functions |= {f"{name}.{each}": method for each, method in ours.items() if each == "__call__" or not each.startswith("_")}
    return functions


# Leading arguments that have a default.
LEADING = {("tiled", "tile"), ("suggest_dilations", "layers")}


def test_options_of_public_functions_are_keywords():
    """Only required arguments and arrays may be positional, except in functions like `dilation_taps()` whose arguments all have defaults."""
    functions, wrong = public_functions(), set()
    assert len(functions) > 150
    for name, function in functions.items():
        given = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("self", "cls")
        ]
        options = {p.name for p in given if p.default is not p.empty and "Array" not in str(p.annotation)}
        wrong |= {(name, option) for option in options if len(options) < len(given)} - LEADING
    assert wrong == set()


def test_a_misspelt_argument_is_refused():
    for name, function in public_functions().items():
        if name not in (
            "models.create",
            "streaming.Streamable.stream",
            "Pruned.__call__",
        ):  # they take the fields and the arguments of any model
            with pytest.raises(TypeError):
                inspect.signature(function).bind_partial(misspelt=None)


def test_what_others_import_from_dilax_is_public():
    for path in files("train") + files("configs") + files("benchmarks"):
        ours = [name.split(".") for name in imports(path) if name.startswith("dilax.")]
        assert [parts for parts in ours if parts[1] not in dilax.__all__ or any(part.startswith("_") for part in parts)] == [], path


def test_size_of_files():
    sizes = {module_name(path): len(path.read_text().splitlines()) for path in files("dilax") + files("train") + files("configs")}
    assert {name: size for name, size in sizes.items() if size > 440} == {}
