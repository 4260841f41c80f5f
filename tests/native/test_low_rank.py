"""Low-rank updates on every kernel path against NumPy, for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from pliant import _native
from pliant.adapters import Factors
from pliant.runtime.low_rank import decode_factors, encode_factors

kernels = _native.kernels
PATHS = kernels.paths()


def case(rank: int, rows: int, columns: int, tokens: int) -> tuple[Factors, np.ndarray, np.ndarray]:
    draw = np.random.default_rng([rank, rows, columns, tokens])

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    return (
        Factors(normal(rank, columns), normal(rows, rank)),
        normal(tokens, columns),
        normal(tokens, rows),
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("rank", "rows", "columns", "tokens"),
    [(1, 1, 1, 1), (4, 40, 64, 3), (5, 33, 100, 2), (16, 150, 321, 7)],
)
def test_exact_activations_give_the_product(
    path: str, rank: int, rows: int, columns: int, tokens: int
) -> None:
    factors, x, y = case(rank, rows, columns, tokens)
    encoded = encode_factors(factors)
    found = kernels.low_rank(path, encoded.native(), x, y, exact=True)
    a_RI, b_OR = (factor.astype(np.float64) for factor in decode_factors(encoded))
    reduced = x @ a_RI.T
    # u = 2^-24; both sums, each operation rounded once, and the decoded factors themselves.
    terms = np.abs(x) @ np.abs(a_RI.T) @ np.abs(b_OR.T) + np.abs(y)
    bound = (2 * (columns + rank) + 12) * 2.0**-24 * terms
    assert (np.abs(found - (y + reduced @ b_OR.T)) <= bound).all()


def test_all_paths_and_thread_counts_agree_to_the_last_bit() -> None:
    for rank, rows, columns, tokens in ((3, 70, 130, 1), (16, 200, 96, 5), (9, 31, 200, 2)):
        factors, x, y = case(rank, rows, columns, tokens)
        update = encode_factors(factors).native()
        expected = kernels.low_rank("scalar", update, x, y)
        assert not np.array_equal(expected, y)
        for path in PATHS:
            for threads in (1, 2, 3):
                found = kernels.low_rank(path, update, x, y, threads=threads)
                np.testing.assert_array_equal(found, expected, err_msg=f"{path} {threads}")


def test_factors_lose_at_most_half_a_step() -> None:
    draw = np.random.default_rng(0)
    # Ranks of very different size, and one that adds nothing.
    size = np.array([1, 1e-3, 100, 0], np.float32)
    a_RI = draw.normal(size=(4, 150)).astype(np.float32)
    b_OR = (draw.normal(size=(45, 4)) * size).astype(np.float32)
    a, b = decode_factors(encode_factors(Factors(a_RI, b_OR)))
    for rank in range(3):
        exact = np.outer(b_OR[:, rank], a_RI[rank])
        # A to half a step of its largest of 64, B to half a step of the largest of its row.
        found = np.outer(b[:, rank], a[rank])
        most = np.abs(b_OR[:, rank]).max() * np.abs(a_RI[rank]).max()
        assert np.abs(found - exact).max() <= (0.5 / 127 + 0.5 / 127 + 1e-4) * most
    np.testing.assert_array_equal(b[:, 3] * np.abs(a[3]).max(), 0)


@pytest.mark.parametrize("place", range(4))
def test_arrays_of_other_sizes_never_reach_a_kernel(place: int) -> None:
    encoded = encode_factors(case(4, 40, 70, 1)[0])
    arrays = [*encoded[:3], encoded.b_scale_O.view(np.uint16)]
    flat = [array.ravel() for array in arrays]
    flat[place] = flat[place][:-1].copy()
    with pytest.raises(ValueError, match="must be"):
        _native.LowRank(*flat, 4, 40, 70)
    with pytest.raises(ValueError, match="above 0"):
        _native.LowRank(*(array.ravel() for array in arrays), 0, 40, 70)
