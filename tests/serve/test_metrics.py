"""Histograms as prometheus_client would write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram

from pliant.load import Deadlines
from pliant.serve.engine_room import StepRecord
from pliant.serve.metrics import Metrics


def test_a_histogram_is_that_of_the_library() -> None:
    """Bounds, the values on them and what is above all of them."""
    seconds = [0.0, 0.001, 0.0011, 0.3, 120.0, 121.0]
    own = Metrics("tale", dict, Deadlines())
    for value in seconds:
        own.step(StepRecord("", 1, 1, round(value * 1e9)))
    registry = CollectorRegistry()
    bounds = [float(s.labels["le"]) for s in _samples(own._step) if s.name.endswith("_bucket")]
    library = Histogram("pliant:step_seconds", "A step of the engine", ["model_name"],
                        registry=registry, buckets=bounds)  # fmt: skip
    for value in seconds:
        library.labels("tale").observe(value)
    expected = [sample for sample in _samples(library) if not sample.name.endswith("_created")]
    assert _plain(_samples(own._step)) == _plain(expected)


#: What the dashboards of vLLM ask for and this server can tell: all but how a wait for a place and
#: the reading of a prompt divide the time to the first token.
VLLM = ("e2e_request_latency_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds",
        "time_per_output_token_seconds", "request_time_per_output_token_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens",
        "request_params_n", "request_params_max_tokens", "iteration_tokens_total",
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens",
        "generation_tokens", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits",
        "request_success")  # fmt: skip


def test_the_page_is_one_that_prometheus_reads(serve: Any) -> None:
    """Parsed by the library; each series once, each family with its kind and its text."""
    from prometheus_client.parser import text_string_to_metric_families

    own, prompt = serve(), "A long beginning that all of the requests have in common"
    for _ in range(2):
        body = {"prompt": prompt, "max_tokens": 3, "temperature": 0, "n": 2}
        assert own.post("/v1/completions", **body).status_code == 200
    page = own.http.get("/metrics")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(page.text))
    assert len({family.name for family in families}) == len(families)
    series = [(one.name, *sorted(one.labels.items())) for f in families for one in f.samples]
    assert len(set(series)) == len(series)
    assert all(family.documentation and family.type != "unknown" for family in families)
    names = {family.name for family in families}
    assert {f"vllm:{name}" for name in VLLM} <= names
    value = {one.name: one.value for f in families for one in f.samples if "le" not in one.labels}
    # As there, prompts count whole, whatever was kept of them; and a text has been begun once.
    tokens = 4 * len(prompt)
    assert value["vllm:prompt_tokens_total"] == value["vllm:prefix_cache_queries_total"] == tokens
    assert value["vllm:prefix_cache_hits_total"] > 0
    assert value["vllm:time_to_first_token_seconds_count"] == 4
    # A wait for a place and the reading of the prompt make up the time to the first token.
    parts = [value[f"vllm:request_{part}_time_seconds_sum"] for part in ("queue", "prefill")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(value["vllm:time_to_first_token_seconds_sum"])
    assert value["vllm:request_params_n_sum"] == 4


def test_the_dashboard_counts_a_text_that_missed_one_in_ten_as_fluid() -> None:
    """By bounds that are there; the text is as `LoadReport` counts it."""
    board = Path(__file__).parents[2] / "docs" / "how_to" / "serve_dashboard.json"
    if not board.exists():
        pytest.skip("the documentation is not part of an installed package")
    (bound,) = re.findall(r'fluidity_index_bucket\{le=\\"([\d.]+)', board.read_text())
    own, ms = Metrics("tale", dict, Deadlines(100_000_000, 50_000_000)), 1_000_000
    times = [100 * ms + 50 * ms * place for place in range(9)]
    assert own.text(0, [*times, times[-1] + 60 * ms], 1, 10, "stop") == 0.9
    below = {s.labels.get("le"): s.value for s in _samples(own._fluidity)}
    assert below[bound] == 0 and below["+Inf"] == 1


def test_a_text_that_is_cancelled_had_a_first_token(serve: Any) -> None:
    own = serve()
    body = {"prompt": "a", "max_tokens": 120, "stream": True, "ignore_eos": True}
    with own.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    own.wait_idle()
    assert own.service.metrics._first._counts != [0] * len(own.service.metrics._first._counts)


def _samples(collector: Any) -> list[Any]:
    return [sample for family in collector.collect() for sample in family.samples]


def _plain(samples: list[Any]) -> list[tuple[str, list[tuple[str, str]], float]]:
    return sorted((one.name, sorted(one.labels.items()), one.value) for one in samples)
