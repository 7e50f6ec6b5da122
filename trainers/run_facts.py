"""What a run folder says of its run: the types of `run.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

Json = dict[str, Any]
"""A JSON object whose keys its own type knows: `Recipe.to_json()`, `Scale.to_json()`."""
Scores = dict[str, Any]
"""Scores by bare name, and `per_class`: their lists."""
Status = Literal["finished", "stopped_early", "interrupted", "failed", "out_of_memory"]
"""How a run ended."""


class SkippedImage(TypedDict):
    """A picture that could not be used."""

    name: str
    why: str
    split: NotRequired[str]
    """Missing in files of older versions."""


class Repeated(TypedDict):
    """Pictures with equal pixels: how many, and some of their names."""

    count: int
    examples: list[str]


class Best(TypedDict):
    """The best epoch so far."""

    epoch: int
    metric: str
    value: float
    step: NotRequired[int]
    """Of its checkpoint; not in run.json."""


class PeakMemory(TypedDict):
    """Bytes; None where they are not known."""

    host: int | None
    device: int | None


class Gpu(TypedDict):
    name: str
    memory_bytes: int


class Machine(TypedDict):
    """What a process may use of its host."""

    cpu: str
    cores: int
    memory_bytes: int
    gpus: list[Gpu]


class Nodes(TypedDict):
    nodes: list[Machine]


class Threads(TypedDict):
    """For arithmetic, of each worker: rounding depends on them."""

    used: int | None
    """None: as few as are as fast, which the workers find out."""
    of: int
    """Those that it may use."""


MemoryFormat = Literal["channels_last", "contiguous"]
"""How a batch of pictures, and the weights of convolutions, lie in memory: pixel by pixel, or channel by channel."""


class TriedStep(TypedDict):
    """A way to execute training steps that was tried."""

    threads: int
    memory_format: MemoryFormat
    seconds: float
    """Of the fastest of its steps of one micro-batch, on the slowest worker."""


class StepFacts(TypedDict):
    """How training steps are executed, besides `Threads`: rounding, and what dropout draws, depend on it."""

    memory_format: MemoryFormat | None
    """None: whichever is faster, which the workers find out."""
    why: Literal["tried", "kept", "as it comes"]
    """kept: of the same step, tried on the same machine before. as it comes: as was asked for, and else by default."""
    tried: list[TriedStep]
    seconds: float
    """What trying took."""


class DatasetFacts(TypedDict, total=False):
    """What run.json says of the data: enough to predict without it."""

    name: str
    fingerprint: str
    fingerprints: dict[str, str]
    listing: str
    rows: dict[str, int]
    classes: list[str]
    class_ids: list[int] | None
    channels: int
    masks: bool
    target: str
    colours: list[list[int]] | None
    mean: list[float]
    std: list[float]
    class_counts: dict[str, list[int]]
    class_areas: list[int]
    most_objects: int
    layers: int
    target_facts: Mapping[str, Sequence[float]]
    skipped: Sequence[SkippedImage]
    repeated: dict[str, Repeated]


class CodeCopy(TypedDict):
    """A file of the user's own that a run is made of, and what it imports from beside it."""

    path: str
    """Where it lay, on the host of the driver."""
    copy: str
    """Below the run folder."""
    files: dict[str, str]
    """Name below the file's folder -> SHA-256; the file itself comes first."""


class PredictedMemory(TypedDict):
    """Peak memory of a step on its device."""

    predicted_bytes: int
    limit_bytes: int | None
    measured_bytes: NotRequired[int]
    error: NotRequired[float]
    """predicted / measured - 1"""


class RunSeconds(TypedDict):
    """Where the time of a run went, over all attempts but for `setup`."""

    total: float
    setup: float | None
    """Until the workers first stood; None: they never did."""
    compute: float
    data_wait: float
    evaluate: float
    checkpoint: float


class RunEnd(TypedDict, total=False):
    """What the end of a run adds to run.json."""

    message: str
    seconds: RunSeconds
    images_per_second: float | None
    peak_memory_bytes: PeakMemory
    epochs_run: int
    best: Best | None
    final: Scores


class NewEnd(TypedDict):
    """A run that was resumed with another end than it had."""

    after_epoch: int
    """Epochs that it had had."""
    changed: dict[str, list[int | None]]
    """Field of the recipe -> the old value and the new one."""
    at: str


class PrunedFacts(TypedDict):
    """Of a run whose network is that of another, with fewer channels. Of both, before and after."""

    run: str
    """The other's name."""
    epoch: int | None
    """Of its best weights, which were taken."""
    speedup: float
    """As it was asked for."""
    macs: list[int]
    """Multiplications, each with an addition, of one picture."""
    parameters: list[int]
    ms: list[float]
    """Of one picture, on the processor where it was pruned."""


class RunFacts(RunEnd):
    """What run.json holds."""

    name: str
    status: Literal["running"] | Status
    recipe_name: str
    recipe: Json
    scale: Json
    dataset: DatasetFacts
    machine: Nodes
    threads: NotRequired[Threads]
    """Missing in files of older versions."""
    step: NotRequired[StepFacts]
    """Missing in files of older versions, whose pictures lay in channels_last."""
    versions: dict[str, str]
    commit: str | None
    attempt: int
    start_id: str
    started: str
    finished: str | None
    command: str
    memory: NotRequired[PredictedMemory]
    licence: NotRequired[str]
    """Of the pretrained weights that the model started from, where the library that they are from knows it."""
    from_data: NotRequired[Mapping[str, str]]
    """Field of the recipe -> why it has its value, of those that followed from the data."""
    ends: NotRequired[list[NewEnd]]
    code: NotRequired[dict[str, CodeCopy]]
    """"dataset", "model" or "task" -> the file, where that is one of the user's own."""
    changed: NotRequired[list[str]]
    """What had changed, in words, when the run was resumed."""
    pruned: NotRequired[PrunedFacts]
