"""Weights of torchvision, downloaded once; for the models that start from them."""

from __future__ import annotations

import os
import pickle
import socket
from typing import Any

import torch

SILENT_SECONDS = 20.0
"""A download fails where no byte has come for so long."""


def resnet_weights(depth: int) -> dict[str, torch.Tensor]:
    """The state of torchvision's ResNet of this depth, its DEFAULT weights, trained on ImageNet, downloaded once.

    Raises ValueError where the file can neither be downloaded nor read.
    """
    from torchvision import models

    offered: Any = models.get_model_weights(f"resnet{depth}")
    return fetch(offered.DEFAULT, "imagenet", "leave weights out of --model-args for random weights")


def fetch(chosen: Any, name: str, advice: str) -> dict[str, torch.Tensor]:
    """The state of some weights of torchvision, downloaded once.

    Args:
        chosen: A value of one of its enumerations of weights.
        name: What they are called in `weights=NAME`.
        advice: What people can do without them, beside putting the file there by hand.

    Raises:
        ValueError: The file can neither be downloaded nor read.
    """
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(chosen.url))
    waiting = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_SECONDS)  # torch sets none: behind a firewall it would wait for minutes
    try:
        state: dict[str, torch.Tensor] = chosen.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights={name}: {chosen.url} could not be read ({error}); {advice}, or put that file at {path}"
        ) from error
    finally:
        socket.setdefaulttimeout(waiting)
    return state
