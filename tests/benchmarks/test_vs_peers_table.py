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
    lines[0]["int8_share"], lines[1]["int8_share"] = 0.5, None
    lines[-1]["int8_share"] = 0.1
    found = table.table({"15M": {"conditions": known, "probes": [probe], "lines": lines}})
    assert [len(row) for row in found["rows"]] == [len(found["columns"])] * 5
    assert "20.0 and 21.0 GB/s with 2 threads" in found["caption"]
    assert "torch 2.13" in found["caption"]
    # A prompt of a few tokens says nothing of prefill.
    assert found["rows"][-1][6] == ""
    assert [row[7] for row in found["rows"]] == ["50%", "", "", "", ""]


def test_every_round_is_set_against_the_probes_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import vs_peers_limits as limits
    from pliant.evaluate.speed import RunSample
    from pliant.measurement import Measurement
    from random_models import full_spec
    from vs_peers_cases import Case, Length

    rates, peaks = iter([10.0, 30.0, 10.0]), iter([[2e9], [2e9, 4e9], [4e9]])
    monkeypatch.setattr(limits, "read_rate", lambda _: Measurement.of([next(rates)], "GB/s"))
    monkeypatch.setattr(limits._native.kernels, "measure_dot_peak", lambda *_: next(peaks))
    spec = full_spec("tale-750k")
    case = Case("pliant b4", 2, Length(100, 10), spec, 10**9, lambda _: RunSample(1.0, 1.0))
    probed = limits.Limits([2])
    probed.probe()
    probed.probe()
    samples = [RunSample(1.0, 1.0), RunSample(2.0, 1.0)]
    # Both rounds have a mean of 20 GB/s beside them; nothing of the cache is heard at these bytes.
    assert probed.read_share(case, samples) == pytest.approx(0.5, rel=0.01)
    operations = limits.prompt_operations(spec, 100)
    assert operations < 2 * 100 * sum(a * b for a, b in _matrices(spec))
    share = (operations / 1.0 / 3e9 + operations / 2.0 / 4e9) / 2
    assert probed.int8_share(case, samples) == pytest.approx(share)
    assert probed.stored()["drift"] == pytest.approx(2.0)


def _matrices(spec: Any) -> list[tuple[int, int]]:
    return [size for size in spec.tensors().values() if len(size) == 2]
