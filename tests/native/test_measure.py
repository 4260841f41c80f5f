"""The measuring functions refuse what they cannot measure and return one figure for each round."""

from __future__ import annotations

import pytest

kernels = pytest.importorskip("pliant._native", reason="the extension is not built").kernels


def test_a_walk_gives_a_figure_for_each_round() -> None:
    seconds = kernels.measure_walk([256, 64], 2, 512, 2**20, 1, 3)
    assert len(seconds) == 3
    assert min(seconds) > 0


@pytest.mark.parametrize("step_bytes", [[], [0], [100], [2**30]])
def test_steps_are_whole_lines_and_fit(step_bytes: list[int]) -> None:
    with pytest.raises(ValueError, match="step"):
        kernels.measure_walk(step_bytes, 1, 0, 2**20, 1, 1)


def test_a_walk_needs_a_stream() -> None:
    with pytest.raises(ValueError, match="stream"):
        kernels.measure_walk([64], 0, 0, 2**20, 1, 1)


def test_reading_less_than_a_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        kernels.measure_read(1000, 1, 1)


@pytest.mark.skipif("avx2" not in kernels.paths(), reason="this CPU has no AVX2")
def test_the_peak_of_avx2_is_measured() -> None:
    assert min(kernels.measure_dot_peak("avx2", 1, 2)) > 0
