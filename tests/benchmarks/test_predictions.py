"""The report of predictions: cuts, errors and tables from lines that are known."""

from __future__ import annotations

import pytest

from pliant.costs.device import PROFILES, read_device


def test_cuts_keep_the_first_blocks() -> None:
    from predictions import CUTS, cut_of
    from random_models import full_spec

    for name, cuts in CUTS.items():
        spec = full_spec(name)
        found = [cut_of(spec, cut) for cut in cuts]
        assert len({subnet.weight_bytes for subnet in found}) == len(cuts)
    assert sum(map(len, CUTS.values())) * 2 * 2 >= 40


def test_errors_and_goals_are_reported() -> None:
    from predictions import Line, report

    lines = [
        Line("m", "b4", 1, kind, 1, context, seconds * 1.1, seconds)
        for kind in ("decode", "prefill")
        for context, seconds in ((1, 1.0), (512, 2.0), (2048, 3.0))
    ]
    device = read_device(PROFILES / "l4.toml")
    found = report(lines, [{"error": 0.01}, {"error": 0.02}], device)
    assert found["decode"]["median_error"] == pytest.approx(0.1)
    assert found["prefill"]["spearman"] == pytest.approx(1.0)
    assert found["memory_worst"] == [0.01, 0.02]
    table = found["table"]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert len(table["align"]) == len(table["columns"])


def test_published_figures_have_a_reason_each() -> None:
    from predictions_published import published_table

    table = published_table()
    rows = {row[0]: row for row in table["rows"]}
    assert all(len(row) == 5 and row[4] for row in table["rows"])
    assert rows["cache of 50K tokens"][3] == "1.00"
    assert rows["head of one token, Llama-3.1-8B"][3] == "2.00"
    assert rows["keys and values of 2048 tokens in fused attention"][3] == "0.25"
