"""Attention over coded caches: every kernel path against the readable reference in NumPy.

Shape suffixes: R query heads, N cache entries, D head size.
"""

from __future__ import annotations

import numpy as np
import pytest

from pliant.bits.cache import CACHE_UNIT, round_keys, round_values

native = pytest.importorskip("pliant._native", reason="the extension is not built")
kernels = native.kernels

UNIT = 2.0**-24  # half the spacing of fp32 at 1: the rounding error of one operation
PATHS = kernels.paths()
CODED = {"int4": 4, "int3": 3, "int2": 2}


def held(entries_ND: np.ndarray, bits: int, is_key: bool) -> np.ndarray:
    """The first units as codes, the last two units and what follows as float16."""
    folded = max(0, len(entries_ND) // CACHE_UNIT - 2) * CACHE_UNIT
    recent_ND = entries_ND[folded:].astype(np.float16).astype(np.float32)
    if folded == 0:
        return recent_ND
    rounded_ND = (round_keys if is_key else round_values)(entries_ND[:folded], bits)
    return np.concatenate([rounded_ND, recent_ND])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cache", CODED)
@pytest.mark.parametrize(
    ("rows", "entries", "head_dim"),
    [(1, 40, 2), (3, 192, 24), (4, 290, 32), (7, 331, 80), (2, 448, 64), (19, 520, 12)],
)
def test_attend(path: str, cache: str, rows: int, entries: int, head_dim: int) -> None:
    """R query heads with a range each, over codes and rows, beyond one chunk of the context."""
    rng = np.random.default_rng(entries)
    query_RD = rng.standard_normal((rows, head_dim)).astype(np.float32)
    key_ND, value_ND = rng.standard_normal((2, entries, head_dim)).astype(np.float32)
    key_ND[:, 0] *= 20
    begins = rng.integers(0, entries // 3 + 1, rows).tolist()
    ends = rng.integers(entries // 3 + 1, entries + 1, rows).tolist()
    scale = head_dim**-0.5
    y_RD = kernels.attend(path, query_RD, key_ND, value_ND, cache, begins, ends, scale)

    key_ND, value_ND = (
        held(x_ND, CODED[cache], is_key) for x_ND, is_key in ((key_ND, True), (value_ND, False))
    )
    for row in range(rows):
        seen = slice(begins[row], ends[row])
        score_N = key_ND[seen].astype(np.float64) @ query_RD[row] * scale
        weight_N = np.exp(score_N - score_N.max())
        weight_N /= weight_N.sum()
        # As for the other caches (test_attention.py): decoded values are the same to the last bit.
        dot_error = 2 * (head_dim + 3) * UNIT * (np.abs(key_ND[seen]) @ np.abs(query_RD[row])).max()
        relative = 2 * dot_error * scale + 2 * (entries + 8) * UNIT
        bound_D = relative * (weight_N @ np.abs(value_ND[seen]))
        assert np.all(np.abs(y_RD[row] - weight_N @ value_ND[seen]) <= bound_D)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cache", CODED)
def test_rows_do_not_know_of_each_other(path: str, cache: str) -> None:
    rng = np.random.default_rng(12)
    rows, entries, head_dim = 21, 530, 40
    query_RD = rng.standard_normal((rows, head_dim)).astype(np.float32)
    key_ND, value_ND = rng.standard_normal((2, entries, head_dim)).astype(np.float32)
    begins = rng.integers(0, 300, rows).tolist()
    ends = rng.integers(300, entries + 1, rows).tolist()
    together_RD = kernels.attend(path, query_RD, key_ND, value_ND, cache, begins, ends)
    for row in range(rows):
        alone_D = kernels.attend(
            path, query_RD[row : row + 1], key_ND, value_ND, cache, [begins[row]], [ends[row]]
        )[0]
        np.testing.assert_array_equal(alone_D, together_RD[row])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cache", CODED)
def test_broken_entries_are_seen_by_those_who_look(path: str, cache: str) -> None:
    """A NaN or an infinity in a coded group is NaN behind it too; others do not notice."""
    rng = np.random.default_rng(14)
    query_RD = rng.standard_normal((2, 24)).astype(np.float32)
    for broken in (np.nan, np.inf, 1e6):  # the last is infinite as float16
        key_ND, value_ND = rng.standard_normal((2, 300, 24)).astype(np.float32)
        key_ND[3, 4] = broken
        y_RD = kernels.attend(path, query_RD, key_ND, value_ND, cache, [0, 64], [300, 300])
        assert np.isnan(y_RD[0]).all()
        assert np.isfinite(y_RD[1]).all()
