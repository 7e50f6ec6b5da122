"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers import limits
from trainers.run_facts import Gpu, Machine

PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "numpy", "pillow")
"""Of Pillow two versions may decode a file to other pixels."""

OPTIONAL = ("timm", "segmentation-models-pytorch")
"""Some models come from these, whose releases rename networks and change their weights."""


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that training needs, and as "trainyard" a digest of the code.

    What is not installed is left out. Runs on hosts where Trainyard is missing (runtime/preflight.py sends it there
    by value): it uses nothing of this package but the names above.
    """
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *OPTIONAL):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    spec = importlib.util.find_spec("trainers")
    if spec is not None and spec.origin is not None:
        digest = hashlib.sha256()
        home = Path(spec.origin).parent
        for path in sorted(home.rglob("*.py")):
            digest.update(f"{path.relative_to(home)}\0".encode() + path.read_bytes())
        found["trainyard"] = f"code {digest.hexdigest()[:8]}"
    return found


def commit() -> str | None:
    """The git commit of the current folder, with "-dirty" where files were changed; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=1)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def changed_since(run: Mapping[str, Any]) -> str:
    """What is other than in run.json of a run that is resumed, in words; "" where nothing is."""
    now = {**versions(), "commit": commit()}
    then = {**run.get("versions", {}), "commit": run.get("commit")}
    pairs = [(name, then[name], now[name]) for name in now if then.get(name) and now[name]]
    return ", ".join(f"{name} {old} (now {new})" for name, old, new in pairs if old != new)


def machine() -> Machine:
    """What this process may use of this host, within the limits of its control groups."""
    return {
        "cpu": _cpu_name(),
        "cores": limits.cpus(),
        "memory_bytes": limits.memory(),
        "gpus": _gpus(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def processor_flags() -> set[str]:
    """The instructions that this processor has, as Linux names them; none where nobody says."""
    with contextlib.suppress(OSError):
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return set(found[1].split()) if found else set()
    return set()


def _gpus() -> list[Gpu]:
    """Asks torch, but does not import it for nothing."""
    if "torch" not in sys.modules and not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found]
