"""Checkpoints: save in the background, restore the newest intact one.

A run's folder holds `checkpoints/` (the last few whole states, to resume from) and `best/` (the variables to use, which
`dilax.loading.read_variables` reads).
"""

import os
import pathlib
import sys
from typing import Any

import jax
from jax.sharding import Sharding

from dilax.errors import UserError
from dilax.loading import checksum, describe_leaves

CHECKPOINTS = "checkpoints"


class Store:
    """Saves one tree by step in a folder, in the background; the newest `keep` saves stay.

    A context manager: leaving it waits until everything is written.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 1):
        """Open or make the folder."""
        import orbax.checkpoint as ocp

        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=("tree", "meta"))

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """Return the newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, meta: dict[str, Any] | None = None) -> None:
        """Start to write a tree of arrays; do nothing if that step has been saved."""
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        # orbax keeps no checksum, and reads a flipped bit back silently.
        meta = {**(meta or {}), "checksum": checksum(tree), "leaves": describe_leaves(tree)}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Block until everything is written."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """Return what was saved with the tree; an empty dict if it is damaged."""
        import orbax.checkpoint as ocp

        try:
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except (OSError, ValueError):
            return {}

    def restore(self, like: Any, sharding: Sharding) -> tuple[int, Any] | None:
        """Return (step, tree) of the newest intact save, or None if there is none.

        A truncated or corrupted save is reported on stderr and moved to `corrupt-STEP`, and the one before it is tried.

        Args:
            like: Tree of the same structure, arrays or shapes.
            sharding: Sharding of every leaf.

        Raises:
            UserError: if the save is of another model, or there are saves but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, self._restore_step(step, like, sharding)
            except (UserError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # orbax has no error class of its own for damaged files
                self._set_aside(step, error)
        if steps:
            raise UserError(f"no checkpoint in {self.folder} could be read, of the steps {steps}; pass --restart to begin anew.")
        return None

    def _restore_step(self, step: int, like: Any, sharding: Sharding) -> Any:
        import orbax.checkpoint as ocp

        meta = self.meta(step)
        if not meta:
            raise OSError("its description cannot be read")
        check_same_leaves(meta["leaves"], describe_leaves(like), f"the checkpoint {self.folder / str(step)}")
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like)
        tree = self._manager.restore(step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(abstract)))["tree"]
        if checksum(tree) != meta["checksum"]:
            raise OSError("its checksum does not match")
        return tree

    def _set_aside(self, step: int, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        aside = self.folder.parent / f"corrupt-{self.folder.name}-{step}"
        while aside.exists():
            aside = aside.with_name(aside.name + "-again")
        os.replace(self.folder / str(step), aside)
        self._manager.reload()
        print(f"warning: checkpoint {step} is damaged ({reason}); moved to {aside}; trying the one before.", file=sys.stderr)


def check_same_leaves(saved: dict[str, list[Any]], wanted: dict[str, list[Any]], what: str) -> None:
    """Refuse a save of another model.

    Raises:
        UserError: listing what is missing, superfluous, or of another shape.
    """
    missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    shapes = [
        f"{path} is {saved[path][0]}, not {wanted[path][0]}" for path in sorted(wanted.keys() & saved.keys()) if saved[path] != wanted[path]
    ]
    words = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"also has {', '.join(extra)}"] * bool(extra) + shapes
    if words:
        raise UserError(
            f"{what} is of another model or optimiser: it {'; '.join(words)}. Give the config it was made with, or another --workdir."
        )
