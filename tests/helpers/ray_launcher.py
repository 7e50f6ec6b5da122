"""What `ray up` makes of a file, without a cloud: Ray has no public name for that."""

from __future__ import annotations

from typing import Any


def as_ray_reads_it(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what Ray fills in. Raises where Ray's launcher would refuse it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled: dict[str, Any] = prepare_config(config)
    validate_config(filled)
    return filled
