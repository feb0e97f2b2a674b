"""Checkpoints: whole or absent, of this run or refused, restored bit by bit.

Orbax writes a step to a temporary name while training goes on, and renames it when it is complete.
Beside the arrays lie a fingerprint of the run that they belong to and a digest of their values, so
that neither another run's nor a damaged checkpoint is ever continued from.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from llm.hashing import weights_digest
from rpo_io.digests import sha256_hex

StateT = TypeVar("StateT")


class Checkpoints:
    """The checkpoints of a run."""

    def __init__(self, folder: Path, keep: int, fingerprint: str) -> None:
        """In a folder, the last so many, of the run with this fingerprint."""
        # What Orbax logs as errors it raises too.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder, self._fingerprint = folder.absolute(), fingerprint
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=False
        )
        self._options = options
        self._open: ocp.CheckpointManager | None = None
        self._unfinished = self.folder
        self._hook = sys.unraisablehook

    def __enter__(self) -> Checkpoints:
        """Use as a context, which waits for the last checkpoint to be complete."""
        self._hook, sys.unraisablehook = sys.unraisablehook, self._complain
        return self

    def __exit__(self, *error: object) -> None:
        """Wait."""
        self.finish()
        sys.unraisablehook = self._hook

    def _complain(self, report: Any) -> None:
        """Where one array of several cannot be written, Orbax gives up the loop of the others."""
        if str(report.exc_value) != "Event loop is closed":
            self._hook(report)

    def latest(self) -> int | None:
        """Step of the last whole checkpoint; None without one."""
        self.finish()
        return self._manager().latest_step() if self.folder.is_dir() else None

    def save(self, step: int, state: Any, data_state: dict[str, Any]) -> None:
        """Begin to save a state, which may be given up when this returns.

        It is complete when :meth:`finish` returns, which the next save waits for.

        Args:
            step: steps made.
            state: a tree of arrays.
            data_state: of the data pipeline, plain values.

        Raises:
            ValueError: it, or the one before, cannot be written; those before it are whole.
        """
        self.finish()
        # All processes open it together, before one of them could find a folder that another made.
        if self._manager().latest_step() == step:
            return
        path, size = self.folder / str(step), sum(x.nbytes for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise ValueError(
                f"{path}: no space left for a checkpoint of {size:,} bytes, {free:,} are free"
            )
        about = {
            "fingerprint": self._fingerprint,
            "digest": weights_digest(state),
            "data": data_state,
        }
        about["seal"] = _seal(step, about)
        arrays = ocp.args.StandardSave(_plain(state))
        self._unfinished = path
        with self._writing():
            self._manager().save(
                step, args=ocp.args.Composite(state=arrays, about=ocp.args.JsonSave(about))
            )

    def finish(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            ValueError: it could not be written.
        """
        if self._open is not None:
            with self._writing():
                self._open.wait_until_finished()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the formats below have errors of many kinds
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"{self._unfinished}: the checkpoint could not be written: {reason}"
            ) from error

    def find(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """The checkpoint to continue from; its arrays are not read yet.

        Args:
            step: which; None for the last.

        Returns:
            The step, and what is said of it.

        Raises:
            ValueError: no checkpoint, one of another run, or a damaged one.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise ValueError(
                f"{self.folder}: no checkpoint to continue from: start without --resume"
            )
        path = self.folder / str(step)
        about = self._about(step, path)
        if about["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"{path}: a checkpoint of another model, data set or configuration: continue with "
                "the config.yaml beside it, or choose another --out"
            )
        return step, about

    def restore(
        self, template: StateT, step: int | None = None
    ) -> tuple[int, StateT, dict[str, Any]]:
        """Restore a state.

        Args:
            template: a state of the same structure, shapes and dtypes.
            step: which; None for the last.

        Returns:
            The step, the state, and the state of the data pipeline.

        Raises:
            ValueError: no checkpoint, one of another run, or a damaged one.
        """
        step, about = self.find(step)
        path = self.folder / str(step)
        leaves, structure = jax.tree.flatten(template)
        try:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(template))
            restored = self._manager().restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
            state = jax.tree.unflatten(structure, [restored[_name(i)] for i in range(len(leaves))])
            whole = weights_digest(state) == about["digest"]
        except Exception as error:  # the formats below have errors of many kinds
            raise ValueError(f"{path}: {_damaged(step)}") from error
        if not whole:
            raise ValueError(f"{path}: {_damaged(step)}")
        return step, state, about["data"]

    def _about(self, step: int, path: Path) -> dict[str, Any]:
        try:
            found = self._manager().restore(
                step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
            )["about"]
            about = {name: found[name] for name in ("fingerprint", "digest", "data")}
            whole = _seal(step, about) == found["seal"]
        except Exception as error:
            raise ValueError(f"{path}: {_damaged(step)}") from error
        if not whole:
            raise ValueError(f"{path}: {_damaged(step)}")
        return about

    def _manager(self) -> ocp.CheckpointManager:
        if self._open is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open = ocp.CheckpointManager(self.folder, options=self._options)
        return self._open


def _plain(state: Any) -> dict[str, jax.Array]:
    """Arrays of a tree by number: its structure is the program's, not the file's."""
    return {_name(i): jax.numpy.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}


def _name(number: int) -> str:
    return f"{number:05d}"


def _seal(step: int, about: dict[str, Any]) -> str:
    """Digest of what is said of a step; the arrays have their own."""
    return sha256_hex(json.dumps([step, about], sort_keys=True))


def _damaged(step: int) -> str:
    return f"the checkpoint is damaged: delete its folder {step}, the one before it will be used"
