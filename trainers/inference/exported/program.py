"""torch.export programs: written, checked and opened again."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.formatting import printable
from trainers.inference.exported.format import Loaded
from trainers.run_facts import Json, RunFacts

TOLD = "trainyard.json"
"""What the file tells, in the archive that it is."""
NETWORK = "model"
"""The part of a program that is the network, where the program makes more of the network's output."""
WITHIN = "network_within"
"""Whether it does."""


def write(model: nn.Module, images: Tensor, told: Json, *, within: bool) -> bytes:
    """A program of a model, for any number of pictures.

    Args:
        model: in evaluation mode.
        images: two or more that it can take.
        told: what the file tells.
        within: whether the network is but the part NETWORK of the model.

    Returns:
        The file's content: where a disk is full, torch would end the process.
    """
    found = torch.export.export(
        model,
        (images[:2],),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        preserve_module_call_signature=(NETWORK,) if within else (),
    )
    content = io.BytesIO()
    torch.export.save(found, content, extra_files={TOLD: json.dumps({**told, WITHIN: within})})
    return content.getvalue()


class Program:
    """Files of these programs."""

    def told(self, file: Path) -> Json:
        try:
            with zipfile.ZipFile(file) as archive:
                name = next((name for name in archive.namelist() if name.endswith(f"extra/{TOLD}")), None)
                told = json.loads(archive.read(name)) if name else {}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{printable(str(file))} is no torch.export program: {error}") from None
        return told if isinstance(told, dict) else {}

    def seen(self, facts: RunFacts) -> RunFacts:
        return facts

    def load(self, file: Path) -> Loaded:
        told = self.told(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about itself
            try:
                program = torch.export.load(file)
            except Exception as error:  # of another version of torch, perhaps
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"{printable(str(file))} cannot be opened by torch {torch.__version__}: {reason}"
                ) from None
            # the task wants the network's own output, not the boxes that a program makes of it
            network = torch.export.unflatten(program).get_submodule(NETWORK) if told[WITHIN] else program.module()
        fp64 = told["trained"]["recipe"]["precision"] == "fp64"
        return Loaded(network, "fp64" if fp64 else "fp32")
