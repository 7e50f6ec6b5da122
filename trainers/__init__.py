"""Train vision models: one command on a laptop, the same on a cluster.

For notebooks and scripts:

    from trainers import Scale, evaluate, fit, resolve

    recipe = resolve("digits.cnn", epochs=5, lr=0.02)
    result = fit(recipe, scale=Scale(workers=0), run="first")
    print(result.status, result.run["best"], evaluate(result.folder, "val")["accuracy"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainers.recipe import Recipe, Scale, resolve

if TYPE_CHECKING:
    from trainers.fitting import RunResult, fit
    from trainers.inference.evaluate import evaluate
    from trainers.inference.export import export
    from trainers.inference.predict import predict
    from trainers.inference.predictor import open_model

__all__ = ["Recipe", "RunResult", "Scale", "evaluate", "export", "fit", "open_model", "predict", "resolve"]

_HOMES = {
    "fit": "fitting",
    "RunResult": "fitting",
    "evaluate": "inference.evaluate",
    "export": "inference.export",
    "open_model": "inference.predictor",
    "predict": "inference.predict",
}


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed: a mistake on the command line is reported before."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainers' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"trainers.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
