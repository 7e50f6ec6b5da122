"""torch.export programs: written, checked and opened again."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from trainers.formatting import printable
from trainers.inference.exported.format import Loaded
from trainers.run_facts import Json, RunFacts

TOLD = "trainyard.json"
"""What the file tells, in the archive that it is."""
NETWORK = "model"
"""The part of a program that is the network, where the program makes more of the network's output."""
WITHIN = "network_outputs"
"""Then the names of the network's outputs in the program's graph; else there are none."""


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
    )
    content = io.BytesIO()
    names = _outputs_of_network(found.graph) if within else []
    torch.export.save(found, content, extra_files={TOLD: json.dumps({**told, WITHIN: names})})
    return content.getvalue()


def _outputs_of_network(graph: fx.Graph) -> list[str]:
    """The names of what the network computes and others use: predictions at points, then prototypes of masks."""

    def within(node: fx.Node) -> bool:
        return any(f"{path}.".startswith(f"{NETWORK}.") for path, _ in node.meta.get("nn_module_stack", {}).values())

    found = [node for node in graph.nodes if within(node) and not all(map(within, node.users))]
    return [node.name for node in sorted(found, key=lambda node: int(node.meta["val"].ndim))]


def network_of(program: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The program up to values of these names, which it then returns. (`torch.export.unflatten` can give a part of a
    program too, but mixes up the calls of a layer that is called several times.)"""
    graph = program.graph
    nodes = {node.name: node for node in graph.nodes}
    (output,) = (node for node in graph.nodes if node.op == "output")
    wanted = tuple(nodes[name] for name in names)
    output.args = (wanted if len(wanted) > 1 else wanted[0],)
    graph.set_codegen(fx.graph.CodeGen())  # whose arguments and results are as they are in the graph
    graph.eliminate_dead_code()
    program.recompile()
    return program


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
            network = program.module()
            if told[WITHIN]:
                network = network_of(network, told[WITHIN])
        fp64 = told["trained"]["recipe"]["precision"] == "fp64"
        return Loaded(network, "fp64" if fp64 else "fp32")
