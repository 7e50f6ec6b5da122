"""One trial: `fit` inside a Tune actor, which is used for one trial after the other.

With one worker the training loop runs in the actor itself: nothing is started for a trial. With several, `fit`
starts them by Ray Train. Either way a trial is an ordinary run folder, and continues from its own checkpoints.
"""

from __future__ import annotations

import gc
import io
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import ray
from ray import tune

from trainers.data import shard_transfer
from trainers.data.batches import Cached
from trainers.fitting import fit
from trainers.messages import DataSpec
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale
from trainers.runs.events import Control
from trainers.runs.files import not_shared, sees
from trainers.runtime import worker
from trainers.storage.run_lock import Busy
from trainers.storage.store import Store
from tune_spaces.messages import Answer, Coordinator, Pointer, Report, Shared, TrialConfig, TrialData
from tune_spaces.sweep_state import FILE, history

POLL_SECONDS = 0.5
BUSY_SECONDS = 60.0
"""So long a trial waits for the process of a sweep that was killed to leave its run folder."""
POINTER = "trainyard.json"
"""The one file of what Tune takes for a checkpoint: a Pointer."""


class Trial(tune.Trainable):
    """Runs trials one after the other; Tune calls `step` for each epoch."""

    def setup(self, config: Mapping[str, object], shared: Shared | None = None) -> None:
        """Prepare the process for its first trial.

        Args:
            config: {"trial": TrialConfig, "lr"?: where that changes on the way}.
            shared: what holds for all trials; Tune asks for a default.
        """
        assert shared is not None
        self.shared = shared
        self.coordinator = cast(Coordinator, ray.get_actor(shared["coordinator"]))
        sys.argv = list(shared["argv"])  # run.json records the command
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trial")  # one for all: matplotlib opens fonts for each
        self._watch: _Watch | None = None
        self._from: Pointer | None = None
        gc.freeze()  # what was imported stays: looking through it after each trial would take longer than all else

    def step(self) -> Report:
        """Train to the end of the next epoch.

        Returns:
            The epoch's number, metric and seconds, or how the trial ended.
        """
        if self._watch is None:
            worker.change_folder(self.shared["cwd"])  # Tune gives each trial a folder of its own
            self._watch = _Watch(self._trial(), self.shared, self.coordinator, self._from)
            self._watch.start(self._thread)
        else:
            self._watch.go.put(None)
        return self._watch.events.get()

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """The next trial takes over this process."""
        self._leave()
        self.config = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Not the weights: which of our own checkpoints holds them."""
        from trainers.training.checkpoint import Checkpoints

        folder = _folder(self.shared, self._trial())
        pointer: Pointer = {"run": folder.address, "step": Checkpoints(folder).latest_step()}
        Store(checkpoint_dir).write_json(POINTER, pointer)

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]  # Tune's hint names older forms, too
        """The trial continues from the checkpoint that the pointer names."""
        self._from = cast(Pointer, Store(checkpoint).read_json(POINTER))

    def cleanup(self) -> None:
        """The actor ends."""
        self._leave()

    def _trial(self) -> TrialConfig:
        changing = {key: self.config[key] for key in ("lr",) if key in self.config}
        return cast(TrialConfig, {**self.config["trial"], **changing})

    def _leave(self) -> None:
        """End the trial that runs, if any, and leave nothing of it on the device."""
        if self._watch is not None:
            self._watch.leave()
            self._watch = None
        self._from = None
        gc.collect()
        if "torch" in sys.modules:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class _Watch(Control):
    """A trial in another thread: it waits for Tune after each epoch."""

    first_picture = 10.0
    own_device = False

    def __init__(self, config: TrialConfig, shared: Shared, coordinator: Coordinator, start: Pointer | None) -> None:
        """Prepare a trial; `start` runs it.

        Args:
            config: of the trial.
            shared: what holds for all trials.
            coordinator: of the sweep.
            start: another trial's checkpoint to continue from, in place of the own newest.
        """
        super().__init__()
        self.config, self.shared, self.coordinator = config, shared, coordinator
        self.events: queue.Queue[Report] = queue.Queue()
        self.go: queue.Queue[None] = queue.Queue()
        self.metric = shared["metric"]
        self.last: Report = {}
        self.best: float | None = None
        if start is not None and start["run"] != _folder(shared, config).address:
            assert start["step"] is not None
            self.adopt = (start["run"], start["step"])
        self._over = threading.Event()
        self._listening = threading.Thread(target=self._poll, daemon=True)
        self._training: Future[None] | None = None

    def start(self, thread: ThreadPoolExecutor) -> None:
        """Train in this thread."""
        self._listening.start()
        self._training = thread.submit(self._run)

    def leave(self) -> None:
        """Stop, where the trial is not over: it can continue later."""
        self.stop.set()
        self.go.put(None)
        assert self._training is not None
        self._training.result()
        self._listening.join()

    def epoch(self, line: Mapping[str, float]) -> None:
        """Hand the epoch to Tune, wait for its answer."""
        value, sign = line[f"val/{self.metric}"], self.shared["sign"]
        self.last = {"epoch": int(line["epoch"]), self.metric: value}
        self.best = value if self.best is None or sign * value > sign * self.best else self.best
        self.events.put({**self.last, "seconds": line["seconds"]})
        if not self.stop.is_set():  # several workers run ahead: no Tune waits for the epochs after the last one
            self.go.get()
        self._ask()

    def wants_pictures(self, best: object) -> bool:
        """Those of the winner are enough; whoever wins is the best so far when it ends."""
        return self.best is not None and bool(ray.get(self.coordinator.is_best.remote(self.best)))

    def _ask(self) -> Answer:
        answer: Answer = ray.get(self.coordinator.ask.remote(self.config["name"]))
        self.verdict = self.verdict or answer["verdict"]
        if answer["stop"] or answer["verdict"]:
            self.stop.set()
        return answer

    def _poll(self) -> None:
        """Long epochs: a request to stop is heard within them."""
        while not self._over.wait(POLL_SECONDS):
            self._ask()

    def _run(self) -> None:
        try:
            end = self._train()
        except Exception as error:  # whatever it is, the sweep continues without this trial
            end = {"status": "failed", "message": str(error) or type(error).__name__}
        self._over.set()
        self._listening.join()
        self.events.put({**self.last, **end, **_open_things(), "done": True})

    def _train(self) -> Report:
        if given_up := self._ask()["given_up"]:
            status, why = given_up
            return {"status": status, "message": why}
        self.best = self._best_before()
        if self.stop.is_set():  # it waited for its place when all were stopped
            return {"status": "pending" if self.best is None else "interrupted", "message": ""}
        config, shared = self.config, self.shared
        recipe, scale = Recipe.from_json(config["recipe"]), Scale.from_json(config["scale"])
        self.fewer_threads = config["fewer_threads"]
        sweep = _folder(shared, config).parent
        if not sees(sweep, FILE, shared["start_id"]):
            return {"status": "failed", "message": not_shared(sweep, [socket.gethostname()])}
        if "lr" in config:
            recipe = recipe.replace(lr=config["lr"])
        since = time.monotonic()
        while True:
            try:
                result = fit(
                    recipe,
                    scale=scale,
                    run=f"{shared['sweep']}/{config['name']}",
                    name=shared["recipe_name"],
                    progress=Progress(file=io.StringIO()),
                    data=_with_meta(config["data"]),
                    control=self,
                )
            except Busy:
                if time.monotonic() - since > BUSY_SECONDS:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return {"status": result.status, "message": result.run.get("message", "")}

    def _best_before(self) -> float | None:
        """Of a trial that continues."""
        lines = history(_folder(self.shared, self.config))
        sign, name = self.shared["sign"], f"val/{self.metric}"
        return max((line[name] for line in lines if name in line), key=lambda value: sign * value, default=None)


def _folder(shared: Shared, config: TrialConfig) -> Store:
    return Store(config["scale"]["storage"]) / shared["sweep"] / config["name"]


def _with_meta(data: TrialData) -> DataSpec:
    """What prepare_data returned; what lies beside prepared pictures is read here, and did not travel."""
    found = {**data, "meta": data["meta"] or dict(Cached(shard_transfer.local(cast(DataSpec, data))).meta)}
    return cast(DataSpec, found)


def _open_things() -> dict[str, int]:
    """What may pile up in a process that is used again and again (Ray's sockets apart); a test checks it."""
    opened = [link for link in Path("/proc/self/fd").glob("*") if _target(link).startswith("/")]
    return {"open_files": len(opened), "threads": threading.active_count()}


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""
