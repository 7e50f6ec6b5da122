"""The checkpoints of a run: written by a thread, verified when read.

`checkpoints/<step>/` holds one file with the full state, readable by any number of workers, and then
`manifest.json` with its hash: a checkpoint without a manifest, or with another hash, does not exist. What went over a
network is read back before the manifest is written. Writing is done by a thread; training never waits for it. Files are
read with `weights_only=True`: a checkpoint from elsewhere cannot run code. Ray's own checkpoints are not used:
one cut in half made a run name unusable there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, cast

import torch
from torch import Tensor

from trainers.phase import phase
from trainers.storage.store import Store, explain
from trainers.training.state import Snapshot, TrainState

_phase = phase("writing or reading a checkpoint")


def start_weights(folder: Store, run: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The best weights of a run that fit a model by name and shape.

    Args:
        folder: Of that run.
        run: How the user calls it.
        own: The model's.

    Raises:
        ValueError: None fits, or there are none.
    """
    given = Checkpoints(folder).best_weights()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ValueError(
            f"init_from={run}: none of its weights fits this model; give the model and arguments of that run, or "
            "--init-from none"
        )
    return fitting


class _Waiting(NamedTuple):
    """A snapshot on its way to the store."""

    snapshot: Snapshot
    step: int
    best_step: int | None


class Checkpoints:
    """The checkpoints of one run folder: the best, the last, and the one before it."""

    def __init__(self, store: Store, attempt: int = 0, saved: Callable[[int], None] = lambda step: None) -> None:
        """
        Args:
            store: The run folder.
            attempt: Larger at every start of the run. Of two checkpoints that of the later attempt counts, so that a
                host that was cut off and still writes does not win.
            saved: Called with the step of each checkpoint that is complete, from another thread.
        """
        self.store, self.attempt, self.saved = store / "checkpoints", attempt, saved
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._waiting: list[_Waiting] = []
        """What is to be written next, in host memory: while a write takes long, the newest state and the best."""
        self._lock = threading.Lock()
        self._busy = False
        """Whether the thread writes what waits."""
        self._error: Exception | None = None
        self._superseded = False
        self._complete: list[str] = []
        """The two newest checkpoints, once this process has written one."""

    @_phase
    def save(self, state: TrainState) -> None:
        """Copy the state now, to be written by a thread. What still waits there and is neither the best nor the newest
        is dropped.

        Raises:
            OSError: An earlier checkpoint could not be written.
        """
        if self._error is not None:
            self.wait()
        best_step = state.best["step"] if state.best else None
        new = _Waiting(state.snapshot(), state.total_steps, best_step)
        with self._lock:
            self._waiting = [*(copy for copy in self._waiting if copy.step == best_step), new]
            if not self._busy:
                self._busy = True
                self._pending = self._thread.submit(self._write_waiting)

    @_phase
    def wait(self) -> None:
        """Until everything is written. Raises OSError where the storage did not take it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        error, self._error = self._error, None
        if error is not None:
            raise error

    @_phase
    def latest(self, warn: Callable[[str], None] = lambda text: None) -> Snapshot | None:
        """The newest snapshot that verifies, or None; `warn` is called for each newer one that does not."""
        problems: list[str] = []
        snapshot = None
        for _, _, name in sorted(self._list(problems.append), reverse=True):
            snapshot = self._read(name, problems.append)
            if snapshot is not None:
                break
        rest = (
            "none is left, and the run starts from the beginning" if snapshot is None else "the one before it is used"
        )
        for text in problems:
            warn(f"{text}; {rest}")
        return snapshot

    @_phase
    def latest_step(self) -> int:
        """The step of the newest checkpoint, whether or not it verifies; 0 where there is none."""
        return max(self._list(), default=(0, 0, ""))[1]

    @_phase
    def at(self, step: int) -> Snapshot | None:
        """The snapshot of a step; the newest where that is gone."""
        return self._read(f"{step:08}", lambda text: None) or self.latest()

    def close(self) -> None:
        """Until everything is written; then the thread ends. Raises OSError as `wait` does."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    @_phase
    def best(self) -> Snapshot:
        """The snapshot of the best epoch. Raises ValueError where there is none that verifies."""
        problems: list[str] = []
        for _, _, name in sorted(self._list(), reverse=True):
            best_step = (self.store / name).read_json("manifest.json")["best_step"]
            snapshot = None if best_step is None else self._read(f"{best_step:08}", problems.append)
            if snapshot is not None:
                return snapshot
        raise ValueError("; ".join([f"{self.store.address} holds no checkpoint of a finished epoch", *problems]))

    def best_weights(self) -> dict[str, Tensor]:
        """What the best epoch was evaluated with: the moving average where there is one. Raises as `best` does."""
        snapshot = self.best()
        return snapshot["ema"] or snapshot["model"]

    def _write_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                copy = self._waiting.pop(0)
            try:
                self._write(copy.snapshot, copy.step, copy.best_step)
            except Exception as error:
                with self._lock:
                    self._error, self._busy = error, False
                    self._waiting.clear()
                return

    def _write(self, snapshot: Snapshot, step: int, best_step: int | None) -> None:
        buffer = io.BytesIO()
        torch.save(snapshot, buffer)
        data = buffer.getvalue()
        folder, file = self.store / f"{step:08}", f"state-{self.attempt}.pt"
        manifest = {
            "step": step,
            "attempt": self.attempt,
            "best_step": best_step,
            "file": file,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            if self._is_superseded():
                return
            folder.write(file, data)
            if folder.local is None and folder.read(file) != data:
                raise OSError("what is read back is not what was written")
            folder.write_json("manifest.json", manifest)
        except OSError as error:
            with contextlib.suppress(OSError):
                folder.delete(file, patience=0)
            raise OSError(
                f"the checkpoint {folder.address} cannot be written: {explain(error)}; "
                "earlier ones are kept, and the same command goes on from there"
            ) from None
        self.saved(step)
        with contextlib.suppress(OSError):  # what is left is removed next time
            self._remove_old(folder.name, best_step)

    def _remove_old(self, newest: str, best_step: int | None) -> None:
        if not self._complete:
            self._complete = [name for _, _, name in sorted(self._list())]
        self._complete = [*(name for name in self._complete[-2:] if name != newest), newest][-2:]
        keep = {*self._complete, *([] if best_step is None else [f"{best_step:08}"])}
        for name in self.store.names():
            if name not in keep:
                self.store.delete(name)

    def _is_superseded(self) -> bool:
        """Whether the run continues elsewhere, from a later start than this one: nothing may be changed there."""
        self._superseded = self._superseded or any(attempt > self.attempt for attempt, _, _ in self._list())
        return self._superseded

    def _list(self, warn: Callable[[str], None] = lambda text: None) -> Iterator[tuple[int, int, str]]:
        """(attempt, step, folder name) of every checkpoint that has a manifest; `warn` is called for broken ones."""
        for name in self.store.names():
            folder = self.store / name
            try:
                manifest = folder.read_json("manifest.json")
                found = None if manifest is None else (manifest["attempt"], manifest["step"], name)
            except (ValueError, TypeError, KeyError, NotADirectoryError):
                warn(f"checkpoint {folder.address} has a broken manifest.json")
                continue
            if found is not None:
                yield found

    def _read(self, name: str, warn: Callable[[str], None]) -> Snapshot | None:
        folder = self.store / name
        try:
            manifest = folder.read_json("manifest.json")
            data = folder.read(manifest["file"])
        except (OSError, TypeError, KeyError) as error:
            if isinstance(error, OSError) and error.errno is None:  # a store that does not answer: nothing is known
                raise
            warn(f"checkpoint {folder.address} cannot be read ({error})")
            return None
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            whole = len(data) == manifest["bytes"]
            what = "it was changed" if whole else f"{len(data):,} of {manifest['bytes']:,} bytes are there"
            warn(f"checkpoint {folder.address} is damaged: {what}")
            return None
        return cast(Snapshot, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
