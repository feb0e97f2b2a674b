"""Checkpoints of a run: complete or absent, checked on reading, restored bit by bit.

Orbax writes a step under a temporary name while training continues, and renames it when it is
complete; in a bucket, an object that is written last says so. Leaves are stored by the path of
their parameter, such as ``trainable/layers/q_proj/kernel``. Beside the arrays lie the fingerprint
of the run and a digest of the values, so that neither a damaged checkpoint nor one of another run
is ever continued from.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from llm.hashing import weights_digest
from rpo_io.atomic import staging_folder
from rpo_io.bucket_paths import AnyPath, BucketPath
from rpo_io.digests import sha256_hex
from rpo_io.leases import check_lease
from rpo_io.remote_errors import TRANSIENT, StoreError

from .bucket_checkpoints import (
    download_step,
    list_afresh,
    local_handlers,
    remove_old_steps,
    remove_unfinished_steps,
    start_in_thread,
    upload_step,
    wait_while_reachable,
    whole_steps,
)
from .fingerprint import Fingerprint
from .nested_state import leaf_at, nest_state

StateT = TypeVar("StateT")
SAVE_SECONDS = 600
"""Time after which a save to a bucket is given up."""


class CheckpointRecord(NamedTuple):
    """Metadata of a checkpoint.

    Attributes:
        step: number of updates made.
        fingerprint: fingerprint of the run that wrote it, as a dictionary.
        digest: digest of the arrays.
        data: state of the data pipeline and of the loop, plain values.
    """

    step: int
    fingerprint: dict[str, Any]
    digest: str
    data: dict[str, Any]


def kept_steps(folder: AnyPath) -> list[int]:
    """Return the steps of the complete checkpoints in a folder, in increasing order.

    Args:
        folder: ``checkpoints`` in the folder of a run; a missing one has none.

    Examples:
        >>> kept_steps(Path("no_such_run/checkpoints"))
        []
    """
    if isinstance(folder, BucketPath):
        return whole_steps(folder)
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


class Checkpoints:
    """The checkpoints in a folder, to write and to read.

    Use it as a context manager while writing: on exit it waits for the last checkpoint.

    Attributes:
        folder: absolute path of the folder.
    """

    folder: AnyPath

    def __init__(
        self,
        folder: AnyPath,
        *,
        keep: int | None = None,
        keep_best: bool = False,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        """Open a folder, which is created by the first save.

        Args:
            folder: ``checkpoints`` in the folder of the run, local or in a bucket.
            keep: number of checkpoints to keep, the last ones; None for all.
            keep_best: keep also the one with the largest score.
            fingerprint: fingerprint of the run; needed to save. None reads checkpoints of any run.
        """
        # Orbax also raises what it logs as an error.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        logging.getLogger("fsspec").setLevel(logging.CRITICAL)  # whose errors Orbax handles
        self.folder, self._fingerprint = folder.absolute(), fingerprint
        # If a folder cannot be created in the background, Orbax's threads wait for it for minutes.
        in_order = ocp.AsyncOptions(create_directories_asynchronously=False)
        self._bucket = folder if isinstance(folder, BucketPath) else None
        self._is_staged = self._bucket is not None and self._bucket.location.scheme == "s3"
        self._retention = {"keep": keep, "keep_best": keep_best}
        kept: dict[str, Any] = {"max_to_keep": keep}
        if self._bucket is not None:
            list_afresh()
            # tensorstore tries for hours to reach a server that is gone.
            in_order.timeout_secs = SAVE_SECONDS
            # Orbax would not remove the object first that says that a step is whole.
            kept = {"best_fn": itemgetter("score")} if keep_best else {}
        elif keep_best:
            policies = checkpoint_managers.preservation_policy
            best = policies.BestN(
                get_metric_fn=itemgetter("score"), n=1, keep_checkpoints_without_metrics=False
            )
            both = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
            kept = {
                "preservation_policy": both,
                "best_fn": itemgetter("score"),
            }  # which writes scores
        if self._is_staged:
            kept["multiprocessing_options"] = ocp.options.MultiprocessingOptions(primary_host=None)
        self._options = ocp.CheckpointManagerOptions(
            **kept,
            enable_async_checkpointing=True,
            create=False,
            async_options=in_order,
            # Of a killed run, by the next one.
            cleanup_tmp_directories=fingerprint is not None and self._bucket is None,
        )
        self._stage: Path | None = None
        self._closing = ExitStack()
        weakref.finalize(self, self._closing.close)
        self._saving: Future[None] | None = None
        self._open: ocp.CheckpointManager | None = None
        self._unfinished = self.folder
        self._hook, self._failed = sys.unraisablehook, False

    def __enter__(self) -> Checkpoints:
        """Return itself."""
        self._hook, sys.unraisablehook = sys.unraisablehook, self._ignore_closed_loop
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Wait until the last checkpoint is complete, unless its store cannot be reached."""
        is_store_gone = isinstance(error, StoreError) and error.failure in TRANSIENT
        try:
            if not is_store_gone and not (self._bucket and self._failed):
                self.finish()
        finally:
            if error is not None:
                self._closing.close()  # the process ends, perhaps without its own cleanup
        if not self._failed:  # after a failure, threads complain until the process ends
            sys.unraisablehook = self._hook

    def _ignore_closed_loop(self, report: Any) -> None:
        """Drop one complaint: if a write fails, Orbax closes the event loop of the others."""
        if str(report.exc_value) != "Event loop is closed":
            self._hook(report)

    def latest(self) -> int | None:
        """Return the step of the last complete checkpoint; None if there is none."""
        self.finish()
        if self._bucket is not None:
            return max(whole_steps(self._bucket), default=None)
        return self._manager().latest_step() if self.folder.is_dir() else None

    def describe_latest(self) -> str:
        """Return a phrase for error messages that names the last complete checkpoint."""
        step = self.latest()
        return "no checkpoint yet" if step is None else f"the last good checkpoint is step {step}"

    def save(
        self, step: int, state: Any, data: dict[str, Any], *, score: float | None = None
    ) -> None:
        """Begin to save a state; its buffers may be reused when this method returns.

        The checkpoint is complete when :meth:`finish` returns; the next save waits for it.

        Args:
            step: number of updates made.
            state: a tree of arrays.
            data: state of the data pipeline and of the loop, plain values.
            score: how good the state is, the larger the better; None if it was not evaluated.

        Raises:
            ValueError: if this checkpoint or the one before cannot be written; earlier ones stay
                complete.
        """
        if self._fingerprint is None:
            raise ValueError("`fingerprint` must be given to save a checkpoint")
        self.finish()
        # All processes open the folder together, before one could find what another one created.
        manager = self._manager()
        if self.latest() == step:
            return
        path = self.folder / str(step)
        self._check_space(path, state)
        if self._bucket is not None:
            check_lease(str(path))
        record = CheckpointRecord(step, self._fingerprint._asdict(), weights_digest(state), data)
        about = record._asdict() | {"seal": _seal(record)}
        save = ocp.args.PyTreeSave if self._is_staged else ocp.args.StandardSave
        arrays = save(nest_state(state))
        self._unfinished = path
        with self._writing():
            manager.save(
                step,
                args=ocp.args.Composite(state=arrays, about=ocp.args.JsonSave(about)),
                metrics=None if score is None else {"score": score},
            )
        if self._bucket is not None:
            self._saving = start_in_thread(partial(self._complete, step))

    def _check_space(self, path: AnyPath, state: Any) -> None:
        """Refuse to write a state to a local disk that is too full."""
        local = self._stage if self._is_staged else self.folder
        if not isinstance(local, Path):
            return
        shards = [x.addressable_shards for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        if self._is_staged:
            size = sum(shard.data.nbytes for each in shards for shard in each)
        free = shutil.disk_usage(local).free
        if free < size:
            raise ValueError(
                f"{path}: no space left for a checkpoint of {size:,} bytes, {free:,} are free"
                + (f" in {local}" if self._is_staged else "")
            )

    def _complete(self, step: int) -> None:
        """Wait for Orbax; upload a step that it wrote to the local disk, and remove it there."""
        self._manager().wait_until_finished()
        if self._bucket is not None and self._stage is not None:
            part = self._stage / str(step)
            upload_step(part, self._bucket, step)
            shutil.rmtree(part)

    def finish(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            ValueError: if it cannot be written.
        """
        if self._open is None:
            return
        with self._writing():
            if self._bucket is None:
                self._open.wait_until_finished()
            elif self._saving is not None:
                saving, self._saving = self._saving, None
                wait_while_reachable(saving, self._bucket)
                if jax.process_index() == 0:
                    remove_old_steps(self._bucket, **self._retention)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and tensorstore raise errors of many types
            self._failed = True
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            reason = reason.partition(" [tensorstore_spec=")[0]
            raise ValueError(
                f"{self._unfinished}: the checkpoint could not be written: {reason}"
            ) from error

    def find(self, step: int | None = None) -> CheckpointRecord:
        """Read the record of a checkpoint, but not its arrays.

        Args:
            step: which checkpoint; None for the last.

        Returns:
            The record.

        Raises:
            ValueError: if there is no checkpoint, it is damaged, or another run wrote it.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise ValueError(
                f"{self.folder}: no checkpoint to continue from: start without --resume"
            )
        path = self.folder / str(step)
        record = self._record(step, path)
        ours = self._fingerprint
        difference = None if ours is None else ours.difference(record.fingerprint)
        if difference is not None:
            remedy = (
                "resume the run with that version"
                if difference.startswith("version ")
                else "continue with the config.yaml beside it"
            )
            raise ValueError(
                f"{path}: a checkpoint of {difference}: {remedy}, or choose another --out"
            )
        return record

    def restore(self, template: StateT, step: int | None = None) -> tuple[CheckpointRecord, StateT]:
        """Restore a state.

        Args:
            template: arrays, or their shapes, dtypes and shardings, in the structure of the state.
            step: which checkpoint; None for the last.

        Returns:
            The record of the checkpoint, and the state.

        Raises:
            ValueError: if there is no checkpoint, it is damaged, or another run wrote it.
        """
        record = self.find(step)
        path = self.folder / str(record.step)
        paths, structure = jax.tree_util.tree_flatten_with_path(template)
        try:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nest_state(template))
            manager = self._manager()
            self._download(record.step)
            restored = manager.restore(
                record.step, args=ocp.args.Composite(state=self._restore_args(abstract))
            )["state"]
            state = jax.tree.unflatten(structure, [leaf_at(restored, key) for key, _ in paths])
            matches = weights_digest(state) == record.digest
        except Exception as error:  # Orbax and tensorstore raise errors of many types
            raise ValueError(f"{path}: {_damaged(record.step)}") from error
        if not matches:
            raise ValueError(f"{path}: {_damaged(record.step)}")
        if self._stage is not None:
            shutil.rmtree(self._stage / str(record.step))
        return record, state

    def _restore_args(self, abstract: Any) -> Any:
        if not self._is_staged:
            return ocp.args.StandardRestore(abstract)
        placed = ocp.checkpoint_utils.construct_restore_args(abstract)
        return ocp.args.PyTreeRestore(abstract, restore_args=placed)

    def _download(self, step: int, *below: str) -> None:
        """Download the files of a staged step whose names begin in one of these ways."""
        if self._stage is not None and self._bucket is not None:
            download_step(self._bucket, step, self._stage / str(step), below=below or ("",))

    def _record(self, step: int, path: AnyPath) -> CheckpointRecord:
        try:
            manager = self._manager()
            self._download(step, "about/", "_CHECKPOINT_METADATA")
            about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))[
                "about"
            ]
            record = CheckpointRecord(*(about[name] for name in CheckpointRecord._fields))
            matches = record.step == step and _seal(record) == about["seal"]
        except Exception as error:  # Orbax and the JSON parser raise errors of many types
            raise ValueError(f"{path}: {_damaged(step)}") from error
        if not matches:
            raise ValueError(f"{path}: {_damaged(step)}")
        return record

    def _manager(self) -> ocp.CheckpointManager:
        if self._open is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            root, handlers = epath.Path(str(self.folder)), None
            is_owner = self._fingerprint is not None and jax.process_index() == 0
            if self._bucket is not None and is_owner:
                remove_unfinished_steps(self._bucket)
            if self._is_staged:
                self._stage = self._closing.enter_context(staging_folder(str(self.folder)))
                root, handlers = epath.Path(self._stage), local_handlers()
            self._open = ocp.CheckpointManager(
                root, options=self._options, handler_registry=handlers
            )
        return self._open


def _seal(record: CheckpointRecord) -> str:
    """Return the digest of a record; the arrays have a digest of their own."""
    return sha256_hex(json.dumps(record, sort_keys=True))


def _damaged(step: int) -> str:
    return f"the checkpoint is damaged: delete its folder {step}, the one before it will be used"
