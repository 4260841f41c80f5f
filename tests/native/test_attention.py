"""Attention and cache entries of every kernel path against NumPy.

Shape suffixes: R query heads, N cache entries, D head size.
"""

from __future__ import annotations

import numpy as np
import pytest

native = pytest.importorskip("pliant._native", reason="the extension is not built")
kernels = native.kernels

UNIT = 2.0**-24  # half the spacing of fp32 at 1: the rounding error of one operation
PATHS = kernels.paths()


def stored_as(path: str, cache: str, entries_ND: np.ndarray) -> np.ndarray:
    """What a cache of this type makes of its entries."""
    if cache == "float16":
        return entries_ND.astype(np.float16).astype(np.float32)
    if cache == "int8":
        stored = [kernels.store_int8(path, entry_D) for entry_D in entries_ND]
        return np.array([codes * np.float32(scale) for codes, scale in stored])
    return entries_ND


@pytest.mark.parametrize("path", PATHS)
def test_int8_entries_are_within_half_a_step(path: str) -> None:
    rng = np.random.default_rng(11)
    for size in (1, 2, 7, 8, 12, 24, 33, 64, 80, 128):
        x = rng.standard_normal(size).astype(np.float32)
        codes, scale = kernels.store_int8(path, x)
        assert np.float32(scale) == np.abs(x).max() / np.float32(127)
        assert np.all(np.abs(codes * np.float64(scale) - x) <= scale * (0.5 + 256 * UNIT))
        scalar_codes, scalar_scale = kernels.store_int8("scalar", x)
        assert (codes == scalar_codes).all()
        assert scale == scalar_scale
    assert kernels.store_int8(path, np.zeros(9, np.float32)) == (pytest.approx(np.zeros(9)), 0)
    for broken in (np.nan, np.inf):
        codes, scale = kernels.store_int8(path, np.array([1, broken, 2], np.float32))
        assert np.isnan(scale)


CACHES = ["float32", "float16", "int8"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("rows", "entries", "head_dim"),
    [(1, 1, 2), (3, 5, 24), (4, 64, 32), (7, 131, 80), (2, 300, 64), (19, 700, 12)],
)
def test_attend(path: str, cache: str, rows: int, entries: int, head_dim: int) -> None:
    """R query heads, each with a range and a mask of its own, beyond one chunk of the context."""
    rng = np.random.default_rng(entries)
    query_RD = rng.standard_normal((rows, head_dim)).astype(np.float32)
    key_ND, value_ND = rng.standard_normal((2, entries, head_dim)).astype(np.float32)
    softcap, scale = 10.0, head_dim**-0.5
    log_weight_N = rng.standard_normal(entries).astype(np.float32)
    begins = rng.integers(0, entries // 3 + 1, rows).tolist()
    ends = rng.integers(entries // 3 + 1, entries + 1, rows).tolist()
    ends[0] = entries
    visible_RN = (rng.random((rows, entries)) < 0.7).astype(np.uint8)
    visible_RN[range(rows), np.array(ends) - 1] = 1
    y_RD = kernels.attend(
        path, query_RD, key_ND, value_ND, cache, begins, ends, scale, softcap, log_weight_N,
        visible_RN,
    )  # fmt: skip

    key_ND, value_ND = stored_as(path, cache, key_ND), stored_as(path, cache, value_ND)
    place_N = np.arange(entries)
    for row in range(rows):
        seen_N = (begins[row] <= place_N) & (place_N < ends[row]) & (visible_RN[row] != 0)
        dot_N = key_ND.astype(np.float64) @ query_RD[row] * scale
        score_N = softcap * np.tanh(dot_N / softcap) + log_weight_N
        score_N = np.where(seen_N, score_N, -np.inf)
        weight_N = np.exp(score_N - score_N.max())
        weight_N /= weight_N.sum()
        # A score is off by the rounding of a dot product and 16 u of the cap, a weight by twice
        # that relative to itself, and the sum over entries by its own rounding.
        dot_error = 2 * (head_dim + 3) * UNIT * (np.abs(key_ND) @ np.abs(query_RD[row])).max()
        relative = 2 * (dot_error * scale + 16 * UNIT * softcap) + 2 * (entries + 8) * UNIT
        bound_D = relative * (weight_N @ np.abs(value_ND))
        assert np.all(np.abs(y_RD[row] - weight_N @ value_ND) <= bound_D)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cache", CACHES)
def test_rows_do_not_know_of_each_other(path: str, cache: str) -> None:
    """A row alone and in any company gives the same bits: decoding equals prefill."""
    rng = np.random.default_rng(12)
    rows, entries, head_dim = 21, 530, 40
    query_RD = rng.standard_normal((rows, head_dim)).astype(np.float32)
    key_ND, value_ND = rng.standard_normal((2, entries, head_dim)).astype(np.float32)
    begins = rng.integers(0, 300, rows).tolist()
    ends = rng.integers(300, entries + 1, rows).tolist()
    together_RD = kernels.attend(path, query_RD, key_ND, value_ND, cache, begins, ends)
    for row in range(rows):
        end = ends[row]
        alone_D = kernels.attend(
            path, query_RD[row : row + 1], key_ND[:end], value_ND[:end], cache,
            begins[row : row + 1], [end],
        )[0]  # fmt: skip
        np.testing.assert_array_equal(alone_D, together_RD[row])


@pytest.mark.parametrize("path", PATHS)
def test_int8_cache_is_near_the_exact_one(path: str) -> None:
    """Keys off by half a step move scores by at most e, weights by a factor of exp(2 e)."""
    rng = np.random.default_rng(13)
    entries, head_dim = 400, 64
    scale = head_dim**-0.5
    query_1D = rng.standard_normal((1, head_dim)).astype(np.float32)
    key_ND, value_ND = rng.standard_normal((2, entries, head_dim)).astype(np.float32)
    exact_D, rounded_D = (
        kernels.attend(path, query_1D, key_ND, value_ND, cache, [0], [entries], scale)[0]
        for cache in ("float32", "int8")
    )
    weight_N = np.exp(key_ND.astype(np.float64) @ query_1D[0] * scale)
    weight_N /= weight_N.sum()
    key_step, value_step_N = np.abs(key_ND).max() / 127, np.abs(value_ND).max(axis=1) / 127
    growth = np.exp(2 * scale * np.abs(query_1D).sum() * key_step / 2)
    bound_D = (growth - 1) * (weight_N @ np.abs(value_ND)) + growth * (weight_N @ value_step_N) / 2
    error_D = np.abs(rounded_D - exact_D)
    print(f"{(error_D / bound_D).max():.0%} of the bound")
    assert np.all(error_D <= bound_D)
    assert error_D.max() > 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cache", CACHES)
def test_broken_entries_are_seen_by_those_who_look(path: str, cache: str) -> None:
    rng = np.random.default_rng(14)
    query_RD = rng.standard_normal((3, 24)).astype(np.float32)
    key_ND, value_ND = rng.standard_normal((2, 300, 24)).astype(np.float32)
    key_ND[:64] = np.nan  # a whole block, and one entry
    key_ND[280, 3] = np.nan
    begins, ends = [0, 64, 70], [300, 300, 280]
    y_RD = kernels.attend(path, query_RD, key_ND, value_ND, cache, begins, ends)
    assert np.isnan(y_RD[:2]).all()
    assert np.isfinite(y_RD[2]).all()
