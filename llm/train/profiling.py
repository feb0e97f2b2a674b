"""Traces of training steps for TensorBoard and Perfetto."""

from __future__ import annotations

import jax

from rpo_io.bucket_paths import AnyPath, BucketPath

FOLDER = "profile"
"""Folder of the traces in the folder of a run."""


class StepProfiler:
    """Traces of a few steps of a run, after the step that compiles.

    Args:
        folder: folder for the traces.
        first_step: number of updates made before the run begins.
        count: number of steps to trace; 0 for none.
    """

    def __init__(self, folder: AnyPath, first_step: int, count: int) -> None:
        """Trace nothing yet.

        Raises:
            ValueError: if steps are to be traced into a bucket.
        """
        if count and isinstance(folder, BucketPath):
            raise ValueError(
                "`trainer.profile_steps` must be 0 with an --out in a bucket, because JAX writes "
                f"traces to local folders, got {count}"
            )
        self._folder = folder
        self._first = first_step + 1  # the first step of a process compiles
        self._last = self._first + count - 1
        self._is_tracing = False

    def before(self, step: int) -> None:
        """Begin the trace if this step is the first one of it.

        Args:
            step: number of updates made.
        """
        if step == self._first <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._is_tracing = True

    def after(self, step: int) -> None:
        """End the trace if this step is the last one of it.

        Args:
            step: number of updates made before the step, as in :meth:`before`.
        """
        if step >= self._last:
            self.close()

    def close(self) -> None:
        """End a trace that is still going on, and write it."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
