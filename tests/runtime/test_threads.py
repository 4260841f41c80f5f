"""Thread counts: given, found, or refused."""

from __future__ import annotations

import pytest

from pliant.errors import UsageError
from pliant.runtime.threads import usable_threads


def test_without_a_number_the_cores_are_used() -> None:
    assert usable_threads(None) >= 1
    assert usable_threads(3) == 3


@pytest.mark.parametrize("count", [0, -1, 10_000])
def test_counts_that_no_engine_can_have(count: int) -> None:
    with pytest.raises(UsageError, match=rf"{count} threads were asked for; use 1 to \d+"):
        usable_threads(count)
