"""The device of a process: precision, threads, seeds, memory."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Literal

import torch

from trainers import limits
from trainers.run_facts import PeakMemory

_BF16_OF_AMD = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""How the names of AMD's GPUs begin that multiply matrices of bf16: MI100 and later, RDNA 3 and later."""


def resolve_precision(wanted: str, gpus: bool) -> str:
    """The precision as given; `auto_precision` for "auto"."""
    return auto_precision(gpus) if wanted == "auto" else wanted


def auto_precision(gpus: bool) -> Literal["fp32", "bf16"]:
    """bf16 where this process's GPU computes it by itself, and fp32 elsewhere.

    torch says yes to bf16 on older GPUs too, where it is emulated, slower than fp32.
    """
    return "bf16" if gpus and _computes_bf16(torch.cuda.current_device()) else "fp32"


def _computes_bf16(number: int) -> bool:
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(number).gcnArchName).startswith(_BF16_OF_AMD)
    return torch.cuda.get_device_capability(number) >= (8, 0)


def choose_device() -> torch.device:
    """The GPU that this process was given, else the CPU.

    Not the GPU of a Mac: it has no float64, in which sums of losses and BatchNorm's statistics are kept.
    """
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def warn_of_idle_gpu() -> list[str]:
    """What people should know where `choose_device` leaves the GPU of a Mac idle; empty elsewhere."""
    if not torch.backends.mps.is_available():
        return []
    return [
        "the GPU of this Mac is not used, training runs on its CPU: the GPU has no float64, in which losses and "
        "statistics are summed up; GPUs of NVIDIA and AMD are used, such as a cluster's"
    ]


def set_threads(threads: int) -> None:
    """So many threads for arithmetic, whatever OMP_NUM_THREADS says: Ray sets it to one for its workers."""
    torch.set_num_threads(threads)


def limit_threads() -> None:
    """No more threads than this process may use CPUs: torch knows of no quotas."""
    torch.set_num_threads(min(torch.get_num_threads(), limits.cpus()))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the default generator, which dropout draws from: 2 us, where torch.manual_seed takes 250."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def reset_peak_memory(device: torch.device) -> None:
    """Count `peak_memory` from now on: a process may train one run after the other."""
    with contextlib.suppress(OSError):  # Linux's alone
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device, resident: int = 0) -> PeakMemory:
    """Largest memory so far, in bytes: of this process, and of torch's allocator on its GPU (None on a CPU).

    Args:
        device: That computes.
        resident: Bytes of pictures that are kept there, and not counted: training does without.
    """
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        host = int(found[1]) * 1024 if found else host
    return {
        "host": host,
        "device": torch.cuda.max_memory_allocated(device) - resident if device.type == "cuda" else None,
    }


def spare_memory(device: torch.device) -> int:
    """Bytes of its GPU that were free when this process's allocator had handed out most; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)


def memory_held(device: torch.device) -> int:
    """Bytes of its GPU that this process's allocator holds now; 0 on a CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
