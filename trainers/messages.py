"""What travels between processes, or lies in a file that another process reads: one type for each.

All of it is plain data, JSON but for the arrays and bytes of `EpochEvent`, `DoneEvent` and `FileEvent`; nothing is
pickled into a file. A key that is missing or misspelt is a type error.

    Job                    the driver to each worker: what to train, on what, where
    Event                  a worker to the driver; `kind` says which
    GroupStart, Requests   the run's coordinator to rank 0
    Meta                   `meta.json` of a prepared data set
    ShardResult            a task that decodes pictures to the one that writes `meta.json`

What run.json holds: run_facts.py. Light: NumPy is imported for type checking only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from trainers.run_facts import (
    Best,
    Json,
    Machine,
    PeakMemory,
    Repeated,
    Scores,
    SkippedImage,
    Status,
    StepFacts,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trainers.instances import Targets

Line = dict[str, float]
"""A line of metrics.jsonl: numbers of an epoch by name."""


# The data set ------------------------------------------------------------------------------------------------------


class Facts(TypedDict):
    """What is known of a data set before its pictures are decoded: enough to build a model and a task for it."""

    channels: int
    """1 (grey) or 3 (RGB)."""
    classes: list[str]
    masks: bool
    """Whether targets are masks; kept for files that older versions wrote and read. `target` says more."""
    target: NotRequired[str]
    """The kind of target (data/targets). Missing in files of older versions: `masks` decides."""
    class_counts: dict[str, list[int]]
    """Split -> images, labelled pixels, or objects, of each class."""
    class_areas: NotRequired[list[int]]
    """Of masks, in training: labelled pixels of the images in which each class occurs."""
    most_objects: NotRequired[int]
    """Of objects: those of the training picture that has most."""
    layers: NotRequired[int]
    """Of masks of objects: the layers of the training picture that has most."""
    class_ids: NotRequired[list[int] | None]
    """Of each class, its number in the files of the data, such as COCO's ids of categories. None: it has none."""
    target_facts: NotRequired[Mapping[str, Sequence[float]]]
    """What else tasks may want to know of the training targets: `Target.facts`."""


class Meta(Facts):
    """A prepared data set: what `meta.json` holds."""

    dataset: str
    colours: list[list[int]] | None
    """RGB of each class in pictures of masks. None: chosen for you."""
    size: list[int]
    """Height and width of the stored pictures."""
    rows: dict[str, int]
    """Split -> samples."""
    mean: list[float]
    """Of the training split, for each channel, of values in [0, 1]."""
    std: list[float]
    skipped: Sequence[SkippedImage]
    repeated: dict[str, Repeated]
    """"splits" and "classes" -> pictures that occur in two of them."""
    fingerprint: str
    """Of all pixels and targets."""
    fingerprints: NotRequired[dict[str, str]]
    """Split -> the same of its own. Missing in files of older versions."""
    listing: NotRequired[str]
    """Of the names and classes of the pictures that are learned from; not in meta.json."""
    shards: NotRequired[dict[str, list[str]]]
    """Split -> files; missing where pictures are streamed."""
    files: NotRequired[dict[str, tuple[int, str]]]
    """File -> its size in bytes and its digest."""
    names: NotRequired[dict[str, list[str]]]
    """Split -> what people are shown of each row; where rows are drawn."""
    notices: NotRequired[dict[str, Notice]]
    """Kind -> what was noticed of the files."""
    origin: NotRequired[Json]
    """What it was made of (data/prepared_sets.py)."""


class Notice(TypedDict):
    """What was noticed while files were read, of one kind (notices.py)."""

    count: int
    """Files."""
    example: str
    low: float
    """Least value, where the kind is about values."""
    high: float
    levels: list[int]
    """Pixels of each of 256 levels, where the kind is about them, else none."""
    crowded: int
    """Files in which many different values share a level."""
    white: NotRequired[float]
    """The greatest value that such files may hold, where the kind is about levels; by default that of 16 bits."""


class ShardResult(TypedDict):
    """What a task that decoded pictures has found."""

    split: str
    file: str
    check: tuple[int, str] | None
    """Size in bytes and digest of the file; None: no picture could be used, or none is kept: there is no file."""
    rows: int
    decoded: int
    """Samples that were read, bad ones too."""
    bad: list[SkippedImage]
    names: list[str]
    targets: Sequence[int | str]
    """Of each row: its class, or a digest."""
    hashes: list[str]
    """Digest of each row's pixels."""
    counts: list[int]
    areas: NotRequired[list[int]]
    most_objects: NotRequired[int]
    layers: NotRequired[int]
    sum: list[float]
    """Over all pixels, for each channel; with `squares` for mean and standard deviation."""
    squares: list[float]
    notices: dict[str, Notice]


class DataSpec(TypedDict):
    """Where the workers find the data, and what it is."""

    mode: Literal["cache", "stream"]
    folder: str | None
    """Of the shards, on the host that prepared them."""
    published: str | None
    """Of the shards, for all hosts; None where `folder` is."""
    node: str | None
    """Ray's name of the host that prepared them."""
    meta: Meta


# The job -----------------------------------------------------------------------------------------------------------


class Job(TypedDict):
    """What a driver starts: each worker rebuilds everything from it."""

    recipe: Json
    scale: Json
    folder: str
    """Address of the run folder."""
    storage: str
    """Address of the folder that run folders lie in."""
    attempt: int
    """Larger at every start of the run: a worker of an older one cannot overwrite a newer checkpoint."""
    start_id: str
    """Also in run.json: a worker that does not find it there does not see the driver's storage."""
    data: DataSpec
    threads: int
    """Of each worker; run.json says whether it computes in fewer."""
    cwd: str
    """The driver's: files of the user's own are named from there."""
    adopt: tuple[str, int] | None
    """(run folder, step) of another run's checkpoint to continue from."""
    own_device: bool
    """Whether each worker's device is its alone: trials may share a GPU."""


class RayJob(Job):
    """A job as Ray's workers get it."""

    coordinator: str
    """Name of the run's actor."""
    stall_seconds: float


# Events ------------------------------------------------------------------------------------------------------------


class Picture(TypedDict):
    """A validation picture, uint8, with what the model makes of it, for people."""

    row: int
    name: str
    image: npt.NDArray[np.uint8]
    target: Targets
    """Of masks uint8 of the picture's size, of boxes a table of objects in its pixels, with masks `Instances`."""
    labels: Targets
    """Likewise, or detections: what the task's `labels` gives."""
    kind: NotRequired[str]
    """"best", "worst" or "", at the end of a run."""
    score: NotRequired[float]


class Sums(TypedDict, total=False):
    """What adds up within an epoch; empty at its start. Part of a checkpoint."""

    images: float
    seconds: float
    data_wait: float
    loss: list[float]
    """One for each term of the loss."""
    divisor: list[float]
    """What each is divided by."""
    lr: float
    """Of the last step."""


class MachineEvent(TypedDict):
    """The host of a rank."""

    kind: Literal["machine"]
    host: str
    machine: Machine


class ExecutionEvent(TypedDict):
    """How the workers execute steps, where they chose that."""

    kind: Literal["execution"]
    threads: int
    step: StepFacts


class MessageEvent(TypedDict):
    """A line for people."""

    kind: Literal["message"]
    text: str


class WarningEvent(TypedDict):
    """A line for people that should not be missed."""

    kind: Literal["warning"]
    text: str


class StartEvent(TypedDict):
    """A (new) group of workers stands, and resumes from this checkpoint."""

    kind: Literal["start"]
    history: list[Line]
    step: int
    epoch: int
    precision: str
    """As the workers' devices decided, where the job left that open."""


class SavedEvent(TypedDict):
    """The checkpoint of `step` is complete."""

    kind: Literal["saved"]
    step: int


class StepEvent(TypedDict):
    """Progress within an epoch."""

    kind: Literal["step"]
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    score: str | None
    images_per_second: float
    data_wait_share: float
    seconds_left: float | None
    """None: it cannot be told yet."""


class FileEvent(TypedDict):
    """A file for the run folder."""

    kind: Literal["file"]
    name: str
    data: bytes


class EpochEvent(TypedDict):
    """An epoch has ended."""

    kind: Literal["epoch"]
    line: Line
    """Of metrics.jsonl."""
    metric: str
    """The task's main score: of `line` without "val/"."""
    better: bool
    """Whether it is the best epoch so far."""
    counts: dict[str, npt.NDArray[np.int64]]
    pictures: list[Picture] | None


class BeatEvent(TypedDict):
    """A sign of life of a rank."""

    kind: Literal["beat"]
    rank: int
    size: int
    host: str
    idle: float
    """Seconds without a step or a batch."""
    stalled: bool
    at: str
    """How far it is, in words."""
    where: str
    """Where it stands, in words."""
    waits: bool
    """Whether it waits for other ranks."""
    first: bool
    last: bool


class DoneEvent(TypedDict):
    """How the run ended: the last event."""

    kind: Literal["done"]
    status: Status
    message: str
    counts: dict[str, npt.NDArray[np.int64]]
    """Of the best epoch."""
    pictures: list[Picture]
    peak_memory_bytes: PeakMemory
    seconds: dict[str, float]
    """Spent in train, data_wait, evaluate and checkpoint, over all attempts."""
    before: dict[str, float]
    """The same, up to the checkpoint that this attempt started from."""
    images: int
    epoch: int
    """Epochs that were run."""
    best: Best | None
    final: Scores
    """Of the best epoch, with the losses."""


Event = (
    MachineEvent
    | ExecutionEvent
    | MessageEvent
    | WarningEvent
    | StartEvent
    | SavedEvent
    | StepEvent
    | FileEvent
    | EpochEvent
    | BeatEvent
    | DoneEvent
)


# Answers of the run's coordinator -----------------------------------------------------------------------------------


class GroupStart(TypedDict):
    """What a group of workers learns when it starts."""

    start: int
    """Its number, counted from 1."""
    over: bool
    """The run has ended: leave at once."""
    why: str | None
    """Why this start ends the run; None: it does not."""
    error: str
    """What Ray said when workers died, the last time."""


class Requests(TypedDict):
    """What is requested of the workers."""

    stop: bool
    saves: int
    """Checkpoints requested so far."""
    hurry: bool
    """Whether to save often: a host is about to be taken back."""
