"""Checkpoints: save in the background, restore the newest sound one, read the best variables of a run.

A run's folder holds `checkpoints/` (the last few whole states, to resume from) and `best/` (the variables to use).
"""

import os
import pathlib
import sys
import zlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Sharding

from dilax.errors import UserError
from train.optim import leaves_with_paths

CHECKPOINTS, BEST = "checkpoints", "best"


class Store:
    """Saves of one tree by step in a folder, written in the background; the newest `keep` stay.

    A context manager: leaving it waits until all is written.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 1, *, read_only: bool = False):
        """Open or make the folder; `read_only` leaves all in it as it is, for it may be a run in progress."""
        import orbax.checkpoint as ocp

        self.folder, self.read_only = folder, read_only
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only)
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=("tree", "meta"))

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, meta: dict[str, Any] | None = None) -> None:
        """Start to write a tree of arrays; does nothing if that step is there already."""
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        # orbax keeps no checksum, and reads a flipped bit back without a word.
        meta = {**(meta or {}), "checksum": checksum(tree), "leaves": describe(tree)}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Block until all is written."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the tree; nothing if it is damaged."""
        import orbax.checkpoint as ocp

        try:
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except (OSError, ValueError):
            return {}

    def restore(self, like: Any, sharding: Sharding) -> tuple[int, Any] | None:
        """Return (step, tree) of the newest sound save, or None if there is none.

        A torn or corrupted save is reported on stderr, moved to `corrupt-STEP`, and the one before it is tried.

        Args:
            like: Tree of the same structure, arrays or shapes.
            sharding: Of every leaf.

        Raises:
            UserError: if the save is of another model, or there are saves and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, self._restore_step(step, like, sharding)
            except (UserError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # orbax has no error of its own for damaged files
                self._set_aside(step, error)
        if steps:
            raise UserError(f"no checkpoint in {self.folder} could be read, of the steps {steps}; pass --restart to begin anew.")
        return None

    def _restore_step(self, step: int, like: Any, sharding: Sharding) -> Any:
        import orbax.checkpoint as ocp

        meta = self.meta(step)
        if not meta:
            raise OSError("its description cannot be read")
        check_same_leaves(meta["leaves"], describe(like), f"the checkpoint {self.folder / str(step)}")
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like)
        tree = self._manager.restore(step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(abstract)))["tree"]
        if checksum(tree) != meta["checksum"]:
            raise OSError("its checksum does not match")
        return tree

    def _set_aside(self, step: int, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        if self.read_only:
            raise UserError(f"the checkpoint {self.folder / str(step)} is damaged ({reason}); resume its run to write another.") from error
        aside = self.folder.parent / f"corrupt-{self.folder.name}-{step}"
        while aside.exists():
            aside = aside.with_name(aside.name + "-again")
        os.replace(self.folder / str(step), aside)
        self._manager.reload()
        print(f"warning: checkpoint {step} is damaged ({reason}); moved to {aside}; trying the one before.", file=sys.stderr)


def describe(tree: Any) -> dict[str, list[Any]]:
    """Return {path: [shape, dtype]} of every leaf."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves_with_paths(tree)}


def check_same_leaves(saved: dict[str, list[Any]], wanted: dict[str, list[Any]], what: str) -> None:
    """Refuse a save of another model.

    Raises:
        UserError: listing what is missing, not wanted, or of another shape.
    """
    missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    shapes = [
        f"{path} is {saved[path][0]}, not {wanted[path][0]}" for path in sorted(wanted.keys() & saved.keys()) if saved[path] != wanted[path]
    ]
    words = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)} besides"] * bool(extra) + shapes
    if words:
        raise UserError(
            f"{what} is of another model or optimiser: it {'; '.join(words)}. Give the config it was made with, or another --workdir."
        )


def checksum(tree: Any) -> int:
    """CRC-32 over the bytes of all leaves, in order of their paths."""
    crc = 0
    for _, leaf in sorted(leaves_with_paths(tree)):
        crc = zlib.crc32(np.ascontiguousarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf).tobytes(), crc)
    return crc


def read_variables(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the best variables of a run, {"params": ..., "batch_stats": ...} of numpy arrays, without knowing its model.

    Raises:
        UserError: if the folder holds no run with anything saved.
    """
    if not (workdir / BEST).is_dir():
        raise UserError(f"{workdir} holds no trained run (there is no {BEST}/ in it); train one there, or give the folder of another.")
    with Store(workdir / BEST, read_only=True) as store:
        step = store.latest()
        if step is None:
            raise UserError(f"{workdir} holds no checkpoint yet; let its run go on until its first evaluation.")
        like = _tree_of(store.meta(step).get("leaves", {}))
        found = store.restore(like, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    assert found is not None  # there is a step, and restore raises where it cannot be read
    return jax.tree.map(np.asarray, found[1])


def _tree_of(leaves: dict[str, list[Any]]) -> dict[str, Any]:
    """Nested dicts of shapes, from what `describe` returned for nested dicts."""
    flat = {tuple(path.split("/")): jax.ShapeDtypeStruct(tuple(shape), dtype) for path, (shape, dtype) in leaves.items()}
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(flat)}
