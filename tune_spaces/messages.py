"""What travels between the processes of a sweep, or lies in sweep.json: one type for each. All of it is JSON.

SweepFacts, SweepContent    sweep.json
TrialEntry                  an entry of `trials` there
LeftOut                     an entry of `left_out` there
TrialConfig, Shared         the driver to the actor of a trial
Answer                      the coordinator to a trial
Pointer                     a trial's checkpoint, as Tune takes it from one trial to another
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from trainers.messages import Meta
from trainers.run_facts import Best, Json

Values = Mapping[str, object]
"""What a sweep gives a trial: field -> number, text, true or false, size; model_args.num_filters is a field too."""
Report = dict[str, object]
"""What a trial returns to Tune: `epoch`, the metric by its name, and `seconds`; at its end `status` and `message`."""
TrialStatus = Literal[
    "pending",
    "running",
    "interrupted",
    "finished",
    "stopped_early",
    "out_of_memory",
    "does_not_fit",
    "settled",
    "failed",
]
"""`settled`: not started, as a trial that needs no more memory ran out of it."""
SweepStatus = Literal["running", "finished", "interrupted", "out_of_time"]
Mode = Literal["max", "min"]
RangeKind = Literal["number", "whole", "square"]


class RangeFacts(TypedDict):
    """A Range of ranges.py."""

    low: float
    high: float
    log: bool
    kind: NotRequired[RangeKind]
    """Left out: number."""


class LeftOut(TypedDict):
    """A combination of values that cannot be."""

    values: dict[str, object]
    reason: str


class PlanFacts(TypedDict):
    """What a sweep is: `Sweep.to_json()`. A sweep continues only where this is the same."""

    recipe: str
    space: dict[str, list[object] | RangeFacts]
    changes: Json
    metric: str | None
    search: str
    trials: int | None
    scheduler: str
    grace_epochs: int
    reduction_factor: int
    scale: Json
    seed: int


class TrialEntry(TypedDict):
    """What has become of a trial."""

    name: str
    """Of its run folder."""
    number: int
    values: dict[str, object]
    seed: int
    repeat_of: str | None
    """Name of the trial that it runs again with another seed."""
    status: str
    """A TrialStatus."""
    message: str
    micro_batch_size: int | None
    """None: the share of a worker in one."""
    memory_bytes: int | None
    """Predicted for a step; None: not predicted."""
    epochs: int
    """Planned."""
    epochs_run: int
    best: Best | None
    note: NotRequired[str]
    """How it is run so that it fits into memory."""
    lr_at_end: NotRequired[float]
    """Where population-based training changed it."""
    dropped: NotRequired[bool]
    """Its weights were deleted: other trials are better."""


class SweepFacts(TypedDict):
    """What sweep.json says of the sweep itself, from its start."""

    name: str
    start_id: str
    """A trial that does not find it there does not see the driver's storage."""
    space_name: str
    recipe_name: str
    metric: str
    mode: Mode
    plan: PlanFacts
    recipe: NotRequired[Json]
    """With the changes of the plan; what the space varies is in it as it would be without."""
    scale: Json
    versions: dict[str, str]
    commit: str | None
    command: str
    concurrency: int
    memory_limit_bytes: int | None
    """Of each worker's device."""
    origins: NotRequired[dict[str, str]]
    """What trials are made of besides the plan: origins.py."""


class SweepContent(SweepFacts):
    """sweep.json. The keys that are not required come while it runs, or at its end."""

    status: SweepStatus
    message: str
    winner: str | None
    started: str
    finished: str | None
    trials: list[TrialEntry]
    machine: Mapping[str, object]
    seconds: NotRequired[dict[str, float]]
    """`setup` and `total`, over all processes that ran it."""
    left_out: NotRequired[list[LeftOut]]
    """What the search gave beside the trials."""
    forecast_seconds: NotRequired[float | None]
    repeats: NotRequired[int]
    epochs: NotRequired[dict[str, float]]
    """`planned`, `run`, `saved` and `repeats`."""
    training_seconds: NotRequired[dict[str, float]]
    """`run`, `saved` and `repeats`."""


class TrialData(TypedDict):
    """A DataSpec, but for the facts that lie beside the shards."""

    mode: Literal["cache", "stream"]
    folder: str | None
    published: str | None
    node: str | None
    meta: Meta | None
    """None: the trial reads them itself."""


class TrialConfig(TypedDict):
    """What Tune gives the actor of a trial."""

    name: str
    recipe: Json
    scale: Json
    fewer_threads: bool
    """Whether nobody asked for as many CPUs as the scale says: fewer threads will do where they are as fast."""
    data: TrialData
    resources: dict[str, float]
    """What Tune reserves for it."""
    lr: NotRequired[float]
    """Where that changes on the way."""


class Shared(TypedDict):
    """What holds for all trials of a sweep."""

    coordinator: str
    """Name of the actor."""
    sweep: str
    start_id: str
    recipe_name: str
    metric: str
    sign: int
    """1: more is better; -1: less is."""
    cwd: str
    argv: list[str]


class Answer(TypedDict):
    """What the coordinator says to a trial that asks."""

    stop: bool
    """All trials save and end."""
    verdict: str | None
    """Why this one ends, for good."""
    given_up: tuple[str, str] | None
    """Status and message, where it is not to be started (again)."""


class Pointer(TypedDict):
    """Which checkpoint of ours Tune means."""

    run: str
    """Address of the run folder."""
    step: int | None


class Remote(Protocol):
    """A method of a Ray actor; `ray.get` takes what it returns."""

    def remote(self, *args: object) -> Any: ...


class Coordinator(Protocol):
    """Ray's handle of a SweepCoordinator."""

    stop: Remote
    stop_all: Remote
    give_up: Remote
    ask: Remote
    is_best: Remote
