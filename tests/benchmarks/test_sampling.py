"""The sampling benchmark on a tiny vocabulary: every case, by both samplers."""

from __future__ import annotations

from typing import Any

import pytest


def test_every_case_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sampling

    monkeypatch.setattr(sampling, "VOCABULARIES", {"tiny": 300})
    monkeypatch.setattr(sampling, "DRAWS", {"pliant": 2, "NumPy": 2})
    lines: list[dict[str, Any]] = sampling.measure(2, None)
    assert len(lines) == len(sampling.CASES) + 1 + len(sampling.UNSURE)
    for line in lines:
        assert set(line["microseconds"]) == {"pliant", "NumPy"}
        assert all(took.n == 2 and took.low > 0 for took in line["microseconds"].values())
    table = sampling.table(lines, "Note.")
    assert [len(row) for row in table["rows"]] == [len(table["columns"])] * len(lines)
    assert table["rows"][0][-1] == "-", "llama.cpp was not asked"


def test_both_samplers_draw_from_the_same_distribution() -> None:
    import sampling
    from sampling_cases import CASES, rows

    for case in CASES:
        drawn = [{draw(300, case)(logits) for logits in rows(300, "sure") for _ in range(6)}
                 for draw in (sampling.ours, sampling.in_numpy)]  # fmt: skip
        assert all(0 <= token < 300 for tokens in drawn for token in tokens), case
        assert drawn[0] == drawn[1], f"{case}: the seeds are the same"
