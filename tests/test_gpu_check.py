"""The check of a GPU, on the CPU at its smallest sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu_check.py")
WITHOUT_RAY = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "pytest", "tyro", "rich", "sklearn", "matplotlib", "tensorboard", "optuna")))
sys.argv = [{str(SCRIPT)!r}, "--device", "cpu", "--shrink", "100", "--epoch-seconds", "0.1"]
sys.argv += ["--only", "digit CNN"]
sys.path[0] = {str(SCRIPT.parent)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""None in sys.modules: it cannot be imported."""


@pytest.mark.slow
def test_a_cpu_passes_the_check_of_gpus_without_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["failed"] == []
    assert list(report["models"]) == ["digit CNN"]
    for found in report["models"].values():
        assert set(found["equality"]["wanted"]) == {"fp32", "fp64"}
        assert found["equality"]["passed"]
        assert found["memory"]["predicted"] > 0
        assert found["speed"]["ratio"] > 0
        assert found["trial"]["tried"]
    assert report["execution"]["status"] == "finished"
