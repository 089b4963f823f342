"""Checkpoints: save in the background, restore the newest intact one.

A run's folder holds `checkpoints/` (the last few whole states, to resume from) and `best/` (the variables to use, which
`dilax.loading.read_variables` reads).
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from dilax.errors import UserError, reason
from dilax.loading import check_description, check_tree, describe_leaves, describe_save, mismatches
from train import hosts

CHECKPOINTS = "checkpoints"
PROBE = "probe"  # what `check_folder` saves to


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Return the steps that a run has saved whole, in order, without opening them."""
    return sorted(int(path.name) for path in (workdir / CHECKPOINTS).glob("*") if path.name.isdecimal())


class Store:
    """Saves one tree by step in a folder, in the background.

    A context manager: leaving it waits until everything is written, unless a save has failed.
    """

    def __init__(self, folder: pathlib.Path, *, run: str | None, keep: int | None = None):
        """Open or make the folder.

        Args:
            folder: Its path, absolute.
            run: Id of the run, recorded in every save; saves of another run are not restored.
            keep: How many of the newest saves stay; None keeps all.
        """
        import orbax.checkpoint as ocp

        self.folder = folder
        self._run = run
        self._failed = False
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            # Two stores that save at once must not take each other's barriers for their own.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name),
        )
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=("tree", "meta"))

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._failed:  # else it would wait for threads that have failed, too
            self.wait()
            self._manager.close()

    def latest(self) -> int | None:
        """Return the newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, meta: dict[str, Any] | None = None) -> None:
        """Start to write a tree of arrays; do nothing if that step has been saved.

        Raises:
            UserError: if this or an earlier save fails.
        """
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        described = describe_save(tree, step, self._run, meta or {})
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(described))
        with self._explained():
            self._manager.save(step, args=args, force=True)

    def replace(self, step: int, tree: Any, meta: dict[str, Any] | None = None) -> None:
        """Write a tree, and delete all others: first those of this step and later ones, since the newest is the one that is read."""
        self._delete(lambda other: other >= step)
        self.save(step, tree, meta)
        self.wait()
        self._delete(lambda other: other < step)

    def keep_only(self, step: int) -> None:
        """Delete all saves but one."""
        self._delete(lambda other: other != step)

    def clear(self) -> None:
        """Delete all saves."""
        self._delete(lambda step: True)

    def _delete(self, which: Callable[[int], bool]) -> None:
        with self._explained():
            for step in filter(which, list(self._manager.all_steps())):
                self._manager.delete(step)

    def wait(self) -> None:
        """Block until everything is written.

        Raises:
            UserError: if a save failed.
        """
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def idle(self) -> bool:
        """Return whether everything is written.

        Raises:
            UserError: if a save failed.
        """
        with self._explained():
            self._manager.check_for_errors()
            return not self._manager.is_saving_in_progress()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever orbax, tensorstore and the system raise
            self._failed = True
            if hosts.is_of_another(error):
                raise
            raise UserError(
                f"a checkpoint could not be written to {self.folder} ({_cause(error)}); fix that and give the same command again: "
                "the run resumes from the last good checkpoint."
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """Return what was saved with the tree.

        Raises:
            OSError: if it is damaged, or not of this run and step.
        """
        import orbax.checkpoint as ocp

        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except (OSError, ValueError, KeyError) as error:
            raise OSError("its description cannot be read") from error
        check_description(meta, step, self._run)
        return meta

    def restore(self, like: Any, shardings: Any) -> tuple[int, Any] | None:
        """Return (step, tree) of the newest intact save, or None if there is none.

        One that is damaged, or of another run or step, is reported on stderr and moved to `corrupt-FOLDER-STEP`, and the one before it is
        tried.

        Args:
            like: Tree of the same structure, arrays or shapes.
            shardings: A sharding for every leaf, in a tree, or one for all; whatever they were when the tree was saved.

        Raises:
            UserError: if the save is of another model.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, self.restore_step(step, like, shardings)
            except hosts.NOT_DAMAGE:
                raise
            except Exception as error:  # orbax has no error class of its own for damaged files
                if hosts.is_of_another(error):
                    raise
                self._set_aside(step, error)
        return None

    def restore_step(self, step: int, like: Any, shardings: Any) -> Any:
        """Return the tree of one save; arguments and errors as `restore`, and any other error if it is damaged."""
        import orbax.checkpoint as ocp

        meta = hosts.together(lambda: self.meta(step))
        check_same_leaves(meta["leaves"], describe_leaves(like), f"the checkpoint {self.folder / str(step)}")
        each = jax.tree.map(lambda _: shardings, like) if isinstance(shardings, Sharding) else shardings
        abstract = jax.tree.map(lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like, each)
        args = ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
        tree = hosts.together(lambda: self._manager.restore(step, args=args)["tree"])
        hosts.together(lambda: check_tree(meta, tree))
        return tree

    def _set_aside(self, step: int, error: Exception) -> None:
        hosts.by_first(lambda: self._move_aside(step, error))
        self._manager.reload()

    def _move_aside(self, step: int, error: Exception) -> None:
        aside = self.folder.parent / f"corrupt-{self.folder.name}-{step}"
        while aside.exists():
            aside = aside.with_name(aside.name + "-again")
        os.replace(self.folder / str(step), aside)
        left = "trying the one before" if any(other != step for other in self._manager.all_steps()) else "there is none before it"
        print(f"warning: checkpoint {step} in {self.folder} cannot be used ({reason(error)}); moved to {aside}; {left}.", file=sys.stderr)


def _cause(error: Exception) -> str:
    """Return what the system says, which tensorstore wraps in a line of its own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else reason(error)


def check_folder(workdir: pathlib.Path) -> None:
    """Save a tiny tree in a folder and read it back, as a run will do after hours.

    Raises:
        UserError: if that fails, as it does where the path holds one of the characters * ? [ ], which orbax takes for patterns.
    """
    folder, tree = workdir / PROBE, {"probe": np.arange(3.0, dtype=np.float32)}
    hosts.by_first(lambda: shutil.rmtree(folder, ignore_errors=True))  # a kill may have left it
    try:
        with Store(folder, run=None) as store:
            store.save(1, tree)
            store.wait()
            store.restore_step(1, tree, NamedSharding(Mesh(jax.devices(), "all"), PartitionSpec()))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if hosts.is_of_another(error):
            raise
        cause = error.__cause__ if isinstance(error, UserError) and isinstance(error.__cause__, Exception) else error
        patterns = sorted(set(str(workdir)) & set("*?[]\\"))
        hint = f", since its path holds {' '.join(patterns)}" if patterns else f" ({_cause(cause)})"
        if any("\udc80" <= sign <= "\udcff" for sign in str(workdir)):
            hint = ", since its path is not UTF-8"
        raise UserError(f"checkpoints cannot be written to {workdir} and read back{hint}; give another --workdir.") from error
    finally:
        if hosts.first():
            shutil.rmtree(folder, ignore_errors=True)


def check_same_leaves(saved: dict[str, list[Any]], wanted: dict[str, list[Any]], what: str) -> None:
    """Refuse a save of another model.

    Raises:
        UserError: listing what is missing, superfluous, or of another shape.
    """
    if words := mismatches(saved, wanted):
        raise UserError(f"{what} is of another model or optimiser: it {words}. Give the config it was made with, or another --workdir.")
