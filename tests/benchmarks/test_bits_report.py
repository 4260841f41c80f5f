"""Rows of measurements become points, and points the best of each family within a width."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from bits_report import family_of, summarized, table, widths_table


def row(method: str, bits: float, increase: float, seed: int = 0) -> dict[str, object]:
    return {"model": "m", "method": method, "bits": bits, "seed": seed, "dense": 2.0,
            "increase": increase, "kl": increase}  # fmt: skip


ROWS = [
    row("pliant feedback", 2.25, 0.5), row("pliant feedback mixed", 2.287, 0.4),
    row("pliant feedback mixed", 2.29, 0.2, seed=1), row("gptq g64", 2.28, 0.6),
    row("Q2_K", 2.625, 0.25), row("rtn g32", 2.56, 0.9),
]  # fmt: skip


def test_seeds_of_mixed_bits_are_one_point_though_their_bits_differ() -> None:
    mixed = [point for point in summarized(ROWS) if point["method"].endswith("mixed")]
    assert len(mixed) == 1
    assert mixed[0]["seeds"] == 2
    assert abs(mixed[0]["increase"] - 0.3) < 1e-12 and abs(mixed[0]["spread"] - 0.1) < 1e-12


def test_a_width_compares_the_best_within_it() -> None:
    drawn = widths_table(summarized(ROWS))
    cells = {line[1]: line for line in drawn["rows"]}
    assert cells["2.07"][2:] == ["", "", "", "", ""]
    assert cells["2.31"][2:5] == ["+15.0% feedback mixed, 2.29", "+30.0% gptq g64, 2.28", ""]
    assert cells["2.31"][-1] == "+50%"
    # Q2_K is a type of llama.cpp, the best peer as soon as it fits, and then ahead of ours.
    assert cells["2.63"][5] == "+12.5% Q2_K, 2.62" and cells["2.63"][-1] == "-20%"
    assert family_of({"method": "hqq g64"}) == "RTN, AWQ, HQQ"


def test_the_table_says_where_there_was_one_seed() -> None:
    spreads = {line[1]: line[4] for line in table(summarized(ROWS))["rows"]}
    assert spreads["pliant feedback"] == "one seed" and spreads["pliant feedback mixed"] == "5.0%"
