"""The tables of these pages that are made from the code.

`python docs/generate_tables.py` writes that of the models into models.md and those of the config keys into configuration.md.
"""

import functools
import inspect
import math
import pathlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import dilax
from dilax import weights
from dilax.blocks import SqueezeExcite
from dilax.receptive_fields import receptive_fields
from dilax.summary import layers
from train.config import KEYS
from train.keys import OTHER, Keys
from train.tasks import TASKS

MODELS_PAGE, KEYS_PAGE = (pathlib.Path(__file__).parent / name for name in ("models.md", "configuration.md"))
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
# Class -> its paper, and the number on arXiv, which the file of the model has too.
PAPERS = {
    "ByteNet": ("Kalchbrenner et al. 2016", "1610.10099"),
    "ConvTasNet": ("Luo & Mesgarani 2019", "1809.07454"),
    "DRN": ("Yu, Koltun & Funkhouser 2017", "1705.09914"),
    "DeepLabV3": ("Chen et al. 2017", "1706.05587"),
    "DeepLabV3Plus": ("Chen et al. 2018", "1802.02611"),
    "DenseNet": ("Huang et al. 2017", "1608.06993"),
    "DilatedCNN": ("none: small dilated layers", ""),
    "DilatedFCN": ("after Long et al. 2015", "1411.4038"),
    "EfficientNet": ("Tan & Le 2019", "1905.11946"),
    "FCOS": ("Tian et al. 2019", "1904.01355"),
    "FCN": ("Long et al. 2015", "1411.4038"),
    "GatedDilatedCNN": ("after Strubell et al. 2017", "1702.02098"),
    "HighRes3DNet": ("Li et al. 2017", "1707.01992"),
    "IDCNN": ("Strubell et al. 2017", "1702.02098"),
    "IRCNN": ("Zhang et al. 2017", "1704.03264"),
    "LRASPP": ("Howard et al. 2019", "1905.02244"),
    "MeshNet": ("Fedorov et al. 2017", "1612.00940"),
    "MSTCN": ("Farha & Gall 2019", "1903.01945"),
    "MobileNetV2": ("Sandler et al. 2018", "1801.04381"),
    "MobileNetV3": ("Howard et al. 2019", "1905.02244"),
    "ResNet": ("He et al. 2016", "1512.03385"),
    "RetinaNet": ("Lin et al. 2017", "1708.02002"),
    "Segmenter": ("Yu, Koltun & Funkhouser 2017", "1705.09914"),
    "SeparableCNN": ("none: small separable residual blocks", ""),
    "SeparableDetector": ("after Chen et al. 2021", "2103.09460"),
    "SeparableTCN": ("after Coucke et al. 2018", "1811.07684"),
    "TCN": ("Bai, Kolter & Koltun 2018", "1803.01271"),
    "TridentDetector": ("after Li et al. 2019", "1901.01892"),
    "UNet": ("Ronneberger et al. 2015", "1505.04597"),
    "WaveNet": ("van den Oord et al. 2016", "1609.03499"),
    "YOLOF": ("Chen et al. 2021", "2103.09460"),
    "Xception": ("Chen et al. 2018", "1802.02611"),
}
OTHER_PAPERS = {"seresnet50": ("Hu et al. 2018", "1709.01507")}  # models that differ from the class
GROUPS = {
    "Image classifiers": ("DilatedCNN", "SeparableCNN"),
    "Backbones, which are classifiers too": ("DRN", "DenseNet", "EfficientNet", "MobileNetV2", "MobileNetV3", "ResNet", "Xception"),
    "Segmentation": ("DeepLabV3", "DeepLabV3Plus", "DilatedFCN", "FCN", "LRASPP", "Segmenter", "UNet"),
    "Segmentation of volumes, and of images": ("HighRes3DNet", "MeshNet"),
    "Detection": ("FCOS", "RetinaNet", "SeparableDetector", "TridentDetector", "YOLOF"),
    "Restoration": ("IRCNN",),
    "Sequences": ("ByteNet", "ConvTasNet", "GatedDilatedCNN", "IDCNN", "MSTCN", "SeparableTCN", "TCN", "WaveNet"),
}
WHOLE = "all, by its normalisation"
# What a model takes where it is not images of three channels; codes are analysed as the floats that a model of the same layers takes.
IMAGES: tuple[tuple[int, ...], Any, dict[str, Any]] = ((1, 64, 64, 3), jnp.float32, {})
INPUTS: dict[str, tuple[tuple[int, ...], Any, dict[str, Any]]] = {
    "bytenet": ((1, 64), jnp.int32, {}),
    "conv_tasnet": ((1, 640, 1), jnp.float32, {}),
    "dilated_cnn_mnist": ((1, 28, 28, 1), jnp.float32, {}),
    "gated_dilated_cnn": ((1, 64, 2), jnp.float32, {}),
    "id_cnn": ((1, 64, 2), jnp.float32, {}),
    "ms_tcn": ((1, 64, 2), jnp.float32, {}),
    "ircnn": ((1, 64, 64, 1), jnp.float32, {}),
    "separable_ircnn": ((1, 64, 64, 1), jnp.float32, {}),
    "highres3dnet": ((1, 64, 64, 64, 1), jnp.float32, {}),
    "meshnet": ((1, 64, 64, 64, 1), jnp.float32, {}),
    "separable_tcn": ((1, 64, 40), jnp.float32, {}),
    "tcn": ((1, 64, 2), jnp.float32, {}),
    "wavenet": ((1, 64), jnp.int32, {"outputs": "mixture"}),
}


def models_table() -> str:
    """Return the table of all models in Markdown, one for each group; it takes a few minutes."""
    parts = []
    for group, classes in GROUPS.items():
        names = sorted((name for name in dilax.models.names() if class_name(name) in classes), key=_natural)
        rows = ["| name | paper | parameters | receptive field | output strides | published weights |", "|---|---|---|---|---|---|"]
        parts += [f"### {group}", "\n".join(rows + [model_row(name) for name in names])]
    return "\n\n".join(parts)


def _natural(name: str) -> list[int | str]:
    """A key that sorts resnet18 before resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def model_row(name: str) -> str:
    """Return the row of one model, with the defaults of its fields."""
    return f"| `{name}` | {paper(name)} | {parameters(name):,} | {field(name)} | {strides(name)} | {published(name)} |"


def paper(name: str) -> str:
    """Return the paper of a model, with a link."""
    words, number = OTHER_PAPERS.get(name) or PAPERS[class_name(name)]
    return f"{words}, [arXiv:{number}](https://arxiv.org/abs/{number})" if number else words


def published(name: str) -> str:
    """Return the libraries whose weights of a model are read."""
    return ", ".join(library for library, models in weights.SOURCES.items() if name in models) or "none"


def class_name(name: str) -> str:
    """Return the class of a model: its own name, or that of the class that a factory makes."""
    model: Any = dilax.models.MODELS[name]
    return getattr(model, "func", model).__qualname__.split(".")[0]


def parameters(name: str) -> int:
    """Return the number of parameters, running statistics left out."""
    return sum(leaf.size for leaf in jax.tree.leaves(_variables(*_model(name))["params"]))


def field(name: str) -> str:
    """Return how many samples an output sees along each axis, at the default output stride."""
    if name == "bytenet":  # codes are looked up in a table, which the analysis takes for seeing all of them
        model: Any = dilax.models.create(name)
        return f"{1 + (model.kernel_size - 1) * sum(model.dilations):,}"
    shape, _, fields = INPUTS.get(name, IMAGES)
    model, x = dilax.models.create(name, **fields), jax.ShapeDtypeStruct(shape if len(shape) > 2 else (*shape, 1), jnp.float32)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _variables(model, x))
    if isinstance(model, dilax.models.Detector):  # the cells of its outputs are not axes of space
        sizes = field_sizes(model, x)
        return WHOLE if None in sizes else f"{max(size or 0 for size in sizes):,}"
    gates: list[str] = []
    with nn.intercept_methods(functools.partial(_ungated, gates)):
        output, sizes = receptive_fields(lambda x: model.apply(zeros, x, train=False), x)[0], field_sizes(model, x)
    if output and output[0].size is not None:  # a vector of logits has no axis of its own
        return f"{output[0].size:,}"
    return WHOLE if name == "conv_tasnet" else f"{max(size or 0 for size in sizes):,}{', all by its gates' * bool(gates)}, then pooled"


def field_sizes(model: Any, x: jax.ShapeDtypeStruct) -> list[int | None]:
    """Return how many samples an output of each layer sees along the first axis, None for all."""
    return [layer.receptive_field[0].size for layer in layers(model, x)]


def _ungated(gates: list[str], call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Leave out squeeze-and-excitation, and note its paths; an interceptor for `flax.linen.intercept_methods`."""
    if isinstance(context.module, SqueezeExcite) and context.method_name == "__call__" and not context.module.is_initializing():
        gates.append("/".join(context.module.path))
        return args[0]
    return call(*args, **kwargs)


def strides(name: str) -> str:
    """Return the output strides that a model takes, and its default."""
    model: Any = dilax.models.create(name)
    if "output_stride" not in inspect.signature(type(model).__call__).parameters:
        return "fixed"
    known: tuple[int, ...] = (8, 16, 32)
    default = getattr(model, "output_stride", None) or (8 if class_name(name) == "DRN" else 32)
    if class_name(name) == "UNet":
        known = tuple(2**level for level in range(len(dilax.models.UNetEncoder().stage_features)))
        default = known[-1]
    return ", ".join(f"**{stride}**" if stride == default else str(stride) for stride in known)


def _model(name: str) -> tuple[Any, jax.ShapeDtypeStruct]:
    shape, dtype, _ = INPUTS.get(name, IMAGES)
    return dilax.models.create(name), jax.ShapeDtypeStruct(shape, dtype)


def _variables(model: Any, x: jax.ShapeDtypeStruct) -> Any:
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def keys_tables() -> str:
    """Return the tables of all config keys in Markdown: those that every run has, then those of each task."""
    parts = []
    tasks = {f"Keys of the task `{name}`": task.reads for name, task in TASKS.items()}
    for title, keys in key_tables().items():
        parts.append(f"## {title}")
        for part in dict.fromkeys(name.rpartition(".")[0] for name in keys):
            chosen = {name: key for name, key in keys.items() if name.rpartition(".")[0] == part}
            parts += [f"### `{part}`"] * bool(part) + [keys_table(chosen, tasks.get(title, {}))]
    return "\n\n".join(parts)


def key_tables() -> dict[str, Keys]:
    """Return {title: {dotted key: `train.keys.Key`}}."""
    return {"Keys of every run": KEYS, **{f"Keys of the task `{name}`": task.keys for name, task in TASKS.items()}}


def keys_table(keys: Any, reads: Any) -> str:
    """Return the table of some keys; `reads` lists those that only some kinds of data read, as `Task.reads` does."""
    rows = ["| key | default | meaning | on resume |", "|---|---|---|---|"]
    for name, key in keys.items():
        words = [key.meaning[:1].upper() + key.meaning[1:].rstrip(".")]
        words += [f"One of {', '.join(f'`{choice!r}`' for choice in key.choices)}"] if key.choices else []
        words += _limits(*key.limits)
        words += _readers(name, key, reads)
        meaning = ". ".join(words).replace("|", "\\|")
        rows.append(f"| `{name}` | `{key.default!r}` | {meaning}. | {'may change' if key.may_change else 'fixed'} |")
    return "\n".join(rows)


def _readers(name: str, key: Any, reads: Any) -> list[str]:
    """With which data, or which value of another key, a key is read; nothing if it always is."""
    some, others = ([kind if kind == OTHER else f"`{kind!r}`" for kind in reads if (name in reads[kind]) is read] for read in (True, False))
    found = []
    if some and others:
        found.append(f"Read with the data {_any_of(some)}" if len(some) < 4 else f"Not read with the data {_any_of(others)}")
    if key.needs:
        other, values = key.needs
        found.append(f"Read if `{other}` is {_any_of([f'`{value!r}`' for value in values]) or 'set'}")
    return found


def _any_of(words: list[str]) -> str:
    """Join words as in "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _limits(lowest: float, highest: float) -> list[str]:
    """Limits in words; none where there are none."""
    first = "Above 0" if 0 < lowest < 1e-6 else f"At least {lowest}"
    if math.isfinite(highest):
        return [f"From {lowest} to {highest}" if lowest == 0 or lowest >= 1e-6 else f"{first}, at most {highest}"]
    return [first] if math.isfinite(lowest) else []


def write(page: pathlib.Path, tables: str) -> None:
    """Replace the tables of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write(KEYS_PAGE, keys_tables())
    write(MODELS_PAGE, models_table())
