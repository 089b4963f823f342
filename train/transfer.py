"""Start from another run, or from published weights: load their parameters where they fit, and report what was done with each of them."""

import re
import sys
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from dilax import DataSpec
from dilax.errors import UserError, did_you_mean
from dilax.loading import read_description, read_variables
from dilax.publishing import locate
from train.config import CHANGES

HEAD = "(head|logits|low_logits)"
REMEDY = "Use the same model, config.head_reset=True for another number of classes, or name the rest in config.init_except."


def as_pruned(config: ConfigDict) -> tuple[ConfigDict, str]:
    """Return the config with the network of config.init_from, if that has been pruned and config.model has not; and a note that says so.

    Otherwise the config is returned as it is, with "".

    Raises:
        UserError: if config.init_from cannot be read.
    """
    given: Any = config
    if not isinstance(given.init_from, str) or not given.init_from or given.model.get(CHANGES):
        return config, ""
    changes = _changes_of(read_description(locate("config", "init_from", given.init_from)))
    into = f"{given.init_into}/" if given.init_into else ""
    if not changes:
        return config, ""
    pruned = config.copy_and_resolve_references()
    with pruned.unlocked():
        pruned.model.update({CHANGES: {f"{into}{path}": dict(fields) for path, fields in changes.items()}})
    return pruned, f"note: {given.init_from} has been pruned, and config.model gets the same numbers of channels."


def _changes_of(description: dict[str, Any]) -> dict[str, Any]:
    return description.get("model", {}).get(CHANGES, {})


def init_from(config: ConfigDict, variables: dict[str, Any], spec: DataSpec) -> tuple[dict[str, Any], str]:
    """Return `variables` with the best ones of the run config.init_from, or those published there, in place, and the report of `merge`.

    With config.init_into they go into that module; its head, if it has one, and the rest of the model need not fit.

    Raises:
        UserError: if there is no such run or module, or its variables do not fit.
    """
    folder = locate("config", "init_from", config.init_from)
    source = read_variables(folder)
    status = read_description(folder)
    _warn_of_colours(config, spec, status)
    into = config.init_into
    allowed = (*config.init_except, *((f"(^|/){HEAD}/",) if config.head_reset else ()))
    if into:
        if into not in variables["params"]:
            known = sorted(variables["params"])
            raise UserError(
                f"config.init_into={into!r} is not a module of this model; it has {', '.join(known)}.{did_you_mean(into, known)}"
            )
        source = {part: {into: tree} for part, tree in source.items()}
        allowed = (*allowed, f"^[^/]+/(?!{re.escape(into)}/)", f"^[^/]+/{re.escape(into)}/{HEAD}/")
    remedy = REMEDY
    if _changes_of(status) and not config.model.get(CHANGES):
        remedy = f"It has been pruned: train with train.main, or set config.model.{CHANGES} to what its config.json says."
    merged, report = merge(variables, source, allowed, config.init_from, remedy)
    if status:
        head = re.search(rf"^  loaded \S*{HEAD}/", report, re.MULTILINE) is not None
        for difference in _differences(DataSpec.from_json(status["data"]), spec, head=head):
            print(f"warning: {config.init_from} {difference}", file=sys.stderr)
    return merged, report


def _differences(theirs: DataSpec, ours: DataSpec, *, head: bool) -> list[str]:
    """Return in what the data of another run differs although its parameters fit; `head` says whether the last layer is among them."""
    found = []
    if theirs.sample_rate != ours.sample_rate:
        found.append(f"was trained on sounds of {theirs.sample_rate} samples per second, and those here have {ours.sample_rate}.")
    if len(theirs.symbols) == len(ours.symbols) and theirs.symbols != ours.symbols:
        found.append("was trained on other symbols, whose parameters stand for those here; name the embedding in config.init_except.")
    elif (
        head
        and len(theirs.outputs) == len(ours.outputs)
        and theirs.outputs != ours.outputs
        and theirs.outputs != tuple(map(str, range(len(ours.outputs))))
    ):
        pairs = ", ".join(f"that of {old} is for {new}" for old, new in list(zip(theirs.outputs, ours.outputs))[:3])
        found.append(f"has other outputs, whose parameters stand for those here ({pairs}); set config.head_reset=True to begin them anew.")
    return found


def _warn_of_colours(config: ConfigDict, ours: DataSpec, status: dict[str, Any]) -> None:
    """Warn if the images of the other run were standardised by other numbers."""
    theirs = DataSpec.from_json(status["data"]) if status else ours
    if any(len(spec.input_shape) < 3 and not spec.pixels for spec in (ours, theirs)):
        return  # the numbers of other data than images are measured, not chosen
    for key in ("mean", "std"):
        if getattr(theirs, key) != getattr(ours, key):
            print(
                f"warning: {config.init_from} was trained with data.{key}={getattr(theirs, key)}, and config.data.{key} is "
                f"{getattr(ours, key)}: set it to the same.",
                file=sys.stderr,
            )


def merge(
    target: dict[str, Any], source: dict[str, Any], allowed: tuple[str, ...], name: str, remedy: str = REMEDY
) -> tuple[dict[str, Any], str]:
    """Fill the leaves of `target` from those of `source` with the same path and shape.

    Args:
        target: Freshly initialised variables, nested dicts.
        source: Loaded variables, nested dicts.
        allowed: Regular expressions of paths that are left as they are in `target`, and need not fit.
        name: Name of the source, for the report and the error.
        remedy: What to do if the leaves do not fit, for the error.

    Returns:
        The merged variables, and a report: one line that counts what was loaded, then one for each leaf.

    Raises:
        UserError: naming all leaves that do not fit and are not allowed.
    """
    ours: dict[str, Any]
    theirs: dict[str, Any]
    ours, theirs = traverse_util.flatten_dict(target, sep="/"), traverse_util.flatten_dict(source, sep="/")
    merged, notes, wrong = dict(ours), [], []
    for pattern in allowed:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(f"config.init_except: {pattern!r} is not a regular expression: {error}.") from error
    for path in sorted({*ours, *theirs}):
        is_allowed = any(re.search(pattern, path) for pattern in allowed)
        if path not in ours:
            (notes if is_allowed else wrong).append(f"skipped {path}: not in this model")
        elif is_allowed:
            notes.append(f"initialised {path}")
        elif path not in theirs:
            wrong.append(f"{path} is missing")
        elif theirs[path].shape != ours[path].shape:
            wrong.append(f"{path} has shape {theirs[path].shape}, not {ours[path].shape}")
        else:
            merged[path] = jnp.asarray(theirs[path], ours[path].dtype)
            notes.append(f"loaded {path}")
    if wrong:
        raise UserError(f"init_from={name} does not fit this model: {'; '.join(wrong)}. {remedy}")
    loaded = sum(note.startswith("loaded") for note in notes)
    report = "\n".join([f"init_from {name}: loaded {loaded} of {len(ours)} leaves", *(f"  {note}" for note in notes)])
    return {**target, **traverse_util.unflatten_dict(merged, sep="/")}, report
