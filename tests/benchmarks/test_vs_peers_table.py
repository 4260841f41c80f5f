"""Ratios are taken within rounds, against the peers of the same kind and thread count."""

from __future__ import annotations

from typing import Any

import pytest


def line(runner: str, decode: list[float], prefill: list[float], prompt: int = 512) -> Any:
    def measured(samples: list[float]) -> dict[str, float]:
        ordered = sorted(samples)
        return {"low": ordered[0], "median": ordered[len(ordered) // 2], "high": ordered[-1]}

    return {
        "runner": runner, "threads": 2, "prompt_tokens": prompt, "decode_tokens": 32,
        "weight_bytes": 10**6, "share": 0.5, "decode": measured(decode),
        "prefill": measured(prefill), "decode_samples": decode, "prefill_samples": prefill,
    }  # fmt: skip


@pytest.fixture
def lines() -> list[Any]:
    return [
        line("pliant b4", [20, 10, 40], [100, 50, 200]),
        line("pliant b2", [30, 15, 60], [100, 50, 200]),
        line("llama.cpp Q4_0", [10, 5, 10], [20, 10, 40]),
        line("llama.cpp TQ2_0", [10, 5, 20], [50, 25, 100]),
        line("torch bf16", [1, 1, 1], [900, 900, 900], prompt=16),
    ]


def test_ratios_are_medians_of_the_rounds(lines: list[Any]) -> None:
    import vs_peers_table as table

    # A slow round hits both sides: 2, 2, 4 are the ratios though the medians are 20 and 10.
    assert table.decode_ratios(lines[0], lines) == "2.00 × Q4_0"
    assert table.decode_ratios(lines[1], lines) == "3.00 × TQ2_0"
    assert table.decode_ratios(lines[2], lines) == ""


def test_prefill_is_compared_with_the_fastest_peer_of_the_same_prompt(lines: list[Any]) -> None:
    import vs_peers_table as table

    assert table.prefill_ratio(lines[0], lines) == "2.00 × llama.cpp TQ2_0"


def test_other_thread_counts_are_no_peers(lines: list[Any]) -> None:
    import vs_peers_table as table

    lines[2]["threads"] = 1
    assert table.decode_ratios(lines[0], lines) == ""


def test_goals_are_judged_where_there_are_figures(lines: list[Any]) -> None:
    import vs_peers_goals as goals

    for item in lines:
        item["share"] = 0.82
    found = {goal["goal"]: goal for goal in goals.judged({"Qwen2.5-0.5B": {"lines": lines}})}
    assert found["Qwen2.5-0.5B, 4 planes: decode ÷ Q4_0"]["measured"] == 2
    assert not found["Qwen2.5-0.5B, 4 planes: decode ÷ Q4_0"]["met"]
    assert found["Qwen2.5-0.5B, 2 planes: decode ÷ TQ2_0"]["met"]
    assert found["Qwen2.5-0.5B, 2 planes: share of the read rate"]["met"]
    assert found["Qwen2.5-0.5B: decode of 2 ÷ 4 planes"]["measured"] == 1.5
    assert not any("Llama" in goal for goal in found)


def test_prefill_goals_name_the_peer_they_are_about(lines: list[Any]) -> None:
    import vs_peers_goals as goals

    lines.append(line("torch fp32", [1, 1, 1], [200, 100, 400]))
    found = {goal["goal"]: goal for goal in goals.judged({"Llama-3.2-1B": {"lines": lines}})}
    assert found["Llama-3.2-1B, 4 planes: prefill ÷ llama.cpp TQ2_0"]["measured"] == 2
    assert found["Llama-3.2-1B, 4 planes: prefill ÷ torch fp32"]["measured"] == 0.5


def test_the_brief_table_has_our_lines_only(lines: list[Any]) -> None:
    import vs_peers_table as table

    found = table.brief({"15M": {"conditions": {}, "probes": [], "lines": lines}})
    assert [row[1] for row in found["rows"]] == ["4", "2"]
    assert {len(row) for row in found["rows"]} == {len(found["columns"])}


def test_the_table_has_a_row_for_every_line(lines: list[Any]) -> None:
    import vs_peers_table as table

    probe = {"threads": 2, "before": {"median": 20.0}, "after": {"median": 21.0}}
    known = {"machine": "M", "kernels": "avx2", "repeats": 3, "versions": {"torch": "2.13"}}
    found = table.table({"15M": {"conditions": known, "probes": [probe], "lines": lines}})
    assert [len(row) for row in found["rows"]] == [len(found["columns"])] * 5
    assert "20.0 and 21.0 GB/s with 2 threads" in found["caption"]
    assert "torch 2.13" in found["caption"]
    # A prompt of a few tokens says nothing of prefill.
    assert found["rows"][-1][6] == ""
