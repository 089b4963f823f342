"""The model card of published weights: Markdown below a header in YAML, in the layout of the Hugging Face Hub."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dilax import DataSpec
from dilax.errors import one_line
from dilax.publishing import DESCRIPTION, WEIGHTS

NOT_STATED = "not stated"
# What the Hub calls licences, in lower case; any other is "other" there, with a name of its own.
LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "unlicense", "zlib", "ncsa", "artistic-2.0", "bsl-1.0"),
    *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "epl-2.0", "eupl-1.2", "ecl-2.0", "wtfpl", "postgresql", "openrail"),
    *("cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "odbl", "odc-by", "pddl", "ofl-1.1"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0"),
}
_NAMED = 20  # outputs that are named


def card(description: Mapping[str, Any], title: str, folder: str, *, hub_task: str, licence: str, data_licence: str, stored: str) -> str:
    """Return the text of a model card.

    Args:
        description: What model.json holds.
        title: Heading.
        folder: Name of the folder.
        hub_task: What the Hub calls the task; "" if it has no word for it.
        licence: Licence of the weights, or `NOT_STATED`.
        data_licence: Licence of the data they were trained on, or `NOT_STATED`.
        stored: Dtype of the parameters in the file.
    """
    spec = DataSpec.from_json(description["data"])
    header = yaml.safe_dump(_header(description, spec, hub_task, licence), sort_keys=False, allow_unicode=True, width=math.inf)
    parts = [
        f"---\n{header}---",
        f"# {_text(title)}",
        f"A {_network(description['model'])} with {description['parameters']:,} parameters, trained with dilax, which is built on JAX.",
        f"## What it does\n\n{_facts(description, spec)}",
        f"## What was measured\n\n{_figures(description)}",
        f"## How to use it\n\n{_usage(spec, folder)}",
        f"## Data and licences\n\n{_data(spec, licence, data_licence)}",
        f"## Files\n\n`{WEIGHTS}` holds all variables{_rounding(stored)}, and `{DESCRIPTION}` the network, its options, its data, and "
        "versions.",
    ]
    return "\n\n".join(parts) + "\n"


def _rounding(stored: str) -> str:
    return "" if stored == "float32" else f", the parameters in {stored}, to which they were rounded after the metrics were measured"


def _network(model: Mapping[str, Any]) -> str:
    return f"{'pruned ' if model.get('changes') else ''}`{model['name']}`"


def _header(description: Mapping[str, Any], spec: DataSpec, hub_task: str, licence: str) -> dict[str, Any]:
    """Return the metadata that the Hub reads; results are listed by the split that they were measured on."""
    task, found = description["task"].replace("_", "-"), licence.lower()
    if licence == NOT_STATED:
        licences = {"license": "unknown"}
    elif found in LICENCES:
        licences = {"license": found}
    else:
        licences = {"license": "other", "license_name": _slug(licence)}
    finite = {name: value for name, value in description["metrics"].items() if value is not None}
    splits = dict.fromkeys(name.partition("/")[0] for name in finite)
    results = [
        {
            "task": {"type": hub_task or task, "name": task.replace("-", " ")},
            "dataset": {"type": _slug(spec.name), "name": spec.name, "split": split},
            "metrics": [
                {"type": name.partition("/")[2], "value": value, "name": name.replace("/", " ")}
                for name, value in finite.items()
                if name.startswith(f"{split}/")
            ],
        }
        for split in splits
    ]
    return {
        **licences,
        "library_name": "dilax",
        **({"pipeline_tag": hub_task} if hub_task else {}),
        "tags": ["dilax", "jax", "flax", "dilated-convolution", description["model"]["name"], task],
        **({"metrics": list(dict.fromkeys(name.partition("/")[2] for name in finite))} if finite else {}),
        # The Hub refuses a model-index without results.
        **({"model-index": [{"name": description["name"], "results": results}]} if results else {}),
    }


def _facts(description: Mapping[str, Any], spec: DataSpec) -> str:
    """Return a table of what goes in and what comes out."""
    names = [*spec.outputs[:_NAMED], *[f"and {len(spec.outputs) - _NAMED} more"] * (len(spec.outputs) > _NAMED)]
    rows = [("task", description["task"].replace("_", " ")), ("input", f"{_kind(spec)[0]}; {_shape(spec)} for the network")]
    if spec.mean or spec.std:
        rows.append(("standardised", "each channel by the mean and deviation in `model.json`"))
    return _table(("what", "value"), [*rows, (f"{len(spec.outputs)} outputs", ", ".join(names))])


def _figures(description: Mapping[str, Any]) -> str:
    """Return the metrics as a table, and how they came about."""
    training = description["training"]
    rows = [(name.replace("/", " "), figure(value)) for name, value in description["metrics"].items()]
    words = [] if training["finished"] else ["The run was not finished when its weights were published: they are the best ones up to then."]
    if not any(name.startswith("test/") for name in description["metrics"]):
        words.append("Nothing was measured on a test split.")
    if "seconds" in training:
        words.append(
            f"Seed {training['seed']}; parameters of step {training['step']}; {training['optimiser']} at a learning rate of "
            f"{training['learning_rate']:g} with batches of {training['batch_size']}; trained in {training['seconds']:.0f} s."
        )
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    return "\n\n".join([*[_table(("metric", "value"), rows)] * bool(rows), " ".join(words), *[f"Versions: {versions}."] * bool(versions)])


def _usage(spec: DataSpec, folder: str) -> str:
    """Return three lines of code, and how to train further."""
    lines = [
        "import dilax",
        f'model = dilax.load({_quoted(folder)})  # the path of this folder, or "hf:owner/name"',
        f"model.{_kind(spec)[1]}",
    ]
    code = "\n".join(lines)
    return (
        f"```python\n{code}\n```\n\n"
        "Fine-tune it on other data, from a checkout of dilax, with `--config.init_from` and the path of this folder. "
        "`dilax.read_weights` reads the variables alone."
    )


def _data(spec: DataSpec, licence: str, data_licence: str) -> str:
    examples = f"{spec.examples:,}" if spec.examples else "not known"
    rows = [
        ("data", spec.name),
        ("training examples", examples),
        ("licence of the data", data_licence),
        ("licence of the weights", licence),
    ]
    return _table(("what", "value"), rows)


def _kind(spec: DataSpec) -> tuple[str, str]:
    """Return what a prediction is made from, and a call that makes one."""
    rows, channels = (*spec.input_shape, 1)[:2]
    rows = min(rows, 8)
    if spec.pixels or len(spec.input_shape) == 3:
        return "an image of any size, as a file or an array", 'predict("image.png")'
    if spec.units:
        known = "".join(symbol for symbol in spec.symbols if len(symbol) == 1 and symbol.isalpha())[:3]
        return f"a text, in {spec.units}", f"predict({_quoted(known or spec.symbols[0])})"
    if spec.sample_rate:
        return f"a sound, used at {spec.sample_rate:,} samples per second", 'predict("sound.wav")'
    if spec.mean:
        return "rows of numbers (time, channels)", f"predict([[0.0] * {channels}] * {rows})  # your rows"
    if spec.symbols:
        return "codes (batch, time)", f"outputs([[0] * {rows}])  # your codes"
    return "numbers (batch, time, channels)", f"outputs([[[0.0] * {channels}] * {rows}])  # your numbers"


def _quoted(words: str) -> str:
    return json.dumps(words, ensure_ascii=False)


def figure(value: float | None) -> str:
    """Return a metric in words; None is one that is not finite, which JSON cannot hold."""
    return "not finite" if value is None else f"{value:.4f}"


def _shape(spec: DataSpec) -> str:
    return f"{' x '.join(map(str, spec.input_shape))} {'codes' if spec.symbols else 'numbers'}"


def _table(head: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---|---|", *(f"| {_text(name)} | {_text(value)} |" for name, value in rows)])


def _text(words: str) -> str:
    """Return a text that neither ends a line nor a cell of a table."""
    return one_line(words).replace("|", "\\|")


def _slug(words: str) -> str:
    """Return a text as names on the Hub are written."""
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-") or "other"
