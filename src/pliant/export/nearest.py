"""Which depth of an artifact a target can hold, where it cannot hold the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pliant.artifact import Artifact
from pliant.errors import UnsupportedError
from pliant.subnet import Subnet

_Held = TypeVar("_Held")


def held_or_nearest(artifact: Artifact, subnet: Subnet, hold: Callable[[Subnet], _Held]) -> _Held:
    """What `hold` gives for `subnet`; its `UnsupportedError` names the nearest depth that is held.

    `hold` raises that error for what the target cannot hold. Where no depth of the artifact's path
    is held, the reason is another one, and the error is left as it is.
    """
    try:
        return hold(subnet)
    except UnsupportedError as error:
        kept = len(subnet.shape.blocks)
        for depth in sorted(artifact.depth_path(), key=lambda depth: (abs(depth - kept), depth)):
            if _is_held(artifact.subnet(f"d{depth}"), hold):
                raise UnsupportedError(
                    f"{error} The nearest depth of this artifact that it holds is d{depth}."
                ) from error
        raise


def _is_held(subnet: Subnet, hold: Callable[[Subnet], object]) -> bool:
    try:
        hold(subnet)
    except UnsupportedError:
        return False
    return True
