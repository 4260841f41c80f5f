"""A processor without fast kernels runs all the same, and receipts say so."""

from __future__ import annotations

import pytest

from pliant.errors import UsageError
from pliant.runtime import kernel_path
from pliant.runtime.kernel_path import kernel_warnings


def test_falling_back_to_plain_kernels_is_never_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLIANT_ISA", raising=False)
    for name, number in (("scalar", 1), ("avx2", 0), ("neon", 0)):
        monkeypatch.setattr(kernel_path._native.kernels, "best", lambda name=name: name)
        assert kernel_path.kernel_path() == name
        assert len(kernel_warnings()) == number
    monkeypatch.setattr(kernel_path._native.kernels, "best", lambda: "scalar")
    assert "many times slower" in kernel_warnings()[0]
    monkeypatch.setenv("PLIANT_ISA", "scalar")
    assert kernel_warnings() == ()


def test_a_path_that_is_not_here_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIANT_ISA", "vax")
    with pytest.raises(UsageError, match="vax"):
        kernel_path.kernel_path()
