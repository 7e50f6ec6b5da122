"""Files that `export` writes: found, and opened again.

.pt2    a torch.export program, which takes normalised numbers
.onnx   an ONNX model, which takes pictures as they are
Each tells, in itself and in a JSON beside it, all that it takes to use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainers.formatting import printable
from trainers.inference.exported import program, session
from trainers.inference.exported.format import Format, Loaded
from trainers.inference.exported.told import check_whole, trained
from trainers.run_facts import RunFacts

FORMATS: Mapping[str, Format] = {".pt2": program.Program(), ".onnx": session.Onnx()}
"""By the ending of a file."""
OTHER_FORMATS = (".engine", ".tflite", ".mlmodel", ".mlpackage", ".safetensors", ".pt", ".pth", ".h5")
"""Endings of models of other programs, for whoever gives or asks for these."""


def find(model: str) -> Path | None:
    """The file called so, if it can be one that was exported; None: it is none, perhaps a run."""
    path = Path(model).expanduser()
    if path.suffix.lower() in (*FORMATS, *OTHER_FORMATS) and path.is_file():
        of_format(path)
        return path.absolute()
    return None


def of_format(path: Path) -> Format:
    """What writes and reads such files. Raises ValueError."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{printable(str(path))}: {suffix or 'no ending'} is another format; give {' or '.join(FORMATS)}"
        )
    return FORMATS[suffix]


def refuse_missing(model: str) -> None:
    """Raises ValueError where a name is that of a file, which is not there."""
    if Path(model).suffix.lower() in FORMATS:
        raise ValueError(f"there is no file {printable(model)}, and no run of that name")


def read(file: Path) -> RunFacts:
    """What a file tells of the run that it was exported of, as run.json has it; by its mean and standard deviation
    pictures are normalised for the file's model. Raises ValueError."""
    kind = of_format(file)
    facts = trained(kind.told(file), file)
    check_whole(file)
    return kind.seen(facts)


def load(file: Path) -> Loaded:
    """The model in a file. Raises ValueError."""
    return of_format(file).load(file)
