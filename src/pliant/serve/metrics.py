"""`Metrics`: numbers for Prometheus, under vLLM's names where there are any: dashboards fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from pliant.load import Deadlines, fluidity
from pliant.serve.energy import EnergyMeter
from pliant.serve.engine_room import StepRecord

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
            1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
#: Subnets that have a series of their own.
_MAX_SERIES = 64
_CHOICES = (1, 2, 5, 10, 20)
#: A fluid text has an index of 0.9 or more, so there is a bound just below it.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.8, 0.85, 0.899, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """Counters and histograms of requests, and gauges read from the engine room when asked."""

    def __init__(self, model: str, snapshot: Any, deadlines: Deadlines) -> None:
        from prometheus_client import CollectorRegistry, Counter

        self.registry = CollectorRegistry()
        self._model, self._deadlines = model, deadlines
        self._named: set[str] = set()

        def histogram(name: str, text: str, bounds: Iterable[float], *also: str) -> _Histogram:
            made = _Histogram((name, *also), text, model, bounds)
            self.registry.register(made)
            return made

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(name, text, ["model_name", *labels], registry=self.registry)

        self._first = histogram("vllm:time_to_first_token_seconds", "From request to first token",
                                _SECONDS)  # fmt: skip
        # The second is the older name, which many dashboards still ask for.
        self._between = histogram("vllm:inter_token_latency_seconds", "Between tokens", _SECONDS,
                                  "vllm:time_per_output_token_seconds")  # fmt: skip
        self._per_token = histogram("vllm:request_time_per_output_token_seconds",
                                    "Mean time between the tokens of a text", _SECONDS)  # fmt: skip
        self._queue = histogram("vllm:request_queue_time_seconds", "From request to a place",
                                _SECONDS)  # fmt: skip
        self._prefill = histogram("vllm:request_prefill_time_seconds",
                                  "From a place to the first token", _SECONDS)  # fmt: skip
        self._decode = histogram("vllm:request_decode_time_seconds",
                                 "From first to last token", _SECONDS)  # fmt: skip
        self._choices = histogram("vllm:request_params_n", "Texts asked for at once", _CHOICES)
        self._limits = histogram("vllm:request_params_max_tokens", "Most tokens asked for", _TOKENS)
        self._whole = histogram("vllm:e2e_request_latency_seconds", "From request to last token",
                                _SECONDS)  # fmt: skip
        self._prompts = histogram("vllm:request_prompt_tokens", "Tokens of prompts", _TOKENS)
        self._written = histogram("vllm:request_generation_tokens", "Tokens written", _TOKENS)
        self._step_tokens = histogram("vllm:iteration_tokens_total", "Tokens of a step", _TOKENS)
        self._step = histogram("pliant:step_seconds", "A step of the engine", _SECONDS)
        self._fluidity = histogram("pliant:fluidity_index", "Share of a text's deadlines that its "
                                   "tokens met", _SHARES)  # fmt: skip
        self._success = counter("vllm:request_success", "Texts finished", "finished_reason")
        self._cuts = counter("pliant:requests", "Requests by the subnet that ran them", "subnet")
        self._refused = counter("pliant:refusals", "Requests refused", "status")
        self._cancelled = counter("pliant:cancelled", "Requests whose client went away")
        self.registry.register(_RoomCollector(model, snapshot))

    def render(self) -> bytes:
        """The page that Prometheus reads."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))

    def step(self, record: StepRecord) -> None:
        """Steps were computed."""
        self._step.observe(record.nanoseconds / 1e9, record.steps)
        self._step_tokens.observe(record.tokens, record.steps)

    def refused(self, status: int) -> None:
        """A request was answered with an error."""
        self._refused.labels(self._model, str(status)).inc()

    def cancelled(self) -> None:
        """A client went away before its answer was whole."""
        self._cancelled.labels(self._model).inc()

    def request(self, subnet: str, num_choices: int, max_tokens: int | None) -> None:
        """A request begins on a subnet; `max_tokens` None has no limit to count."""
        self._choices.observe(num_choices)
        if max_tokens is not None:
            self._limits.observe(max_tokens)
        # A client that asks for ever new cuts must not make ever new series.
        if len(self._named) < _MAX_SERIES:
            self._named.add(subnet)
        subnet = subnet if subnet in self._named else "others"
        self._cuts.labels(self._model, subnet).inc()

    def first_token(self, started: int, admitted: int, time: int) -> None:
        """A text has begun, which may be long before it ends, or is cancelled; nanoseconds."""
        self._first.observe((time - started) / 1e9)
        self._queue.observe((admitted - started) / 1e9)
        self._prefill.observe((time - admitted) / 1e9)

    def text(
        self, started: int, times: list[int], prompt_tokens: int, written: int, reason: str
    ) -> float:
        """A text is finished; times in nanoseconds. Returns its fluidity-index."""
        gaps = [later - earlier for earlier, later in zip([started, *times], times, strict=False)]
        index = fluidity(gaps, self._deadlines).index
        for gap in gaps[1:]:
            self._between.observe(gap / 1e9)
        if len(gaps) > 1:
            self._per_token.observe((times[-1] - times[0]) / (len(gaps) - 1) / 1e9)
        self._decode.observe((times[-1] - times[0]) / 1e9)
        self._whole.observe((times[-1] - started) / 1e9)
        self._prompts.observe(prompt_tokens)
        self._written.observe(written)
        self._fluidity.observe(index)
        self._success.labels(self._model, reason).inc()
        return index


class _Histogram:
    """A histogram of one series that one thread fills.

    prometheus_client's own takes locks and walks over all bounds: 10 µs for each value, and there
    are several for each token.
    """

    def __init__(
        self, names: tuple[str, ...], text: str, model: str, bounds: Iterable[float]
    ) -> None:
        self._names, self._text, self._model = names, text, model
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, so many times, in the first bucket whose bound it does not pass."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[Any]:
        """The family of its buckets, each with all below it, under each of its names."""
        from prometheus_client.core import HistogramMetricFamily
        from prometheus_client.utils import floatToGoString

        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        for name in self._names:
            family = HistogramMetricFamily(name, self._text, labels=["model_name"])
            family.add_metric([self._model], buckets, self._sum)
            yield family


class _RoomCollector:
    """What the engine room counts, read at the moment of asking."""

    def __init__(self, model: str, snapshot: Any) -> None:
        self._model, self._snapshot = model, snapshot
        self._energy = EnergyMeter()

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now: Mapping[str, Any] = self._snapshot()
        counts = now["counts"]
        gauges = {
            "vllm:num_requests_running": ("Texts in the batch", now["running"]),
            "vllm:num_requests_waiting": ("Texts that wait", now["waiting"]),
            "vllm:kv_cache_usage_perc": (
                "Share of the cache budget in use",
                (now["cache_bytes"] - now["prefix_bytes"]) / now["cache_budget"],
            ),
            "pliant:kv_cache_bytes": ("Bytes of all caches", now["cache_bytes"]),
            "pliant:kv_prefix_bytes": ("Of them only kept for prefixes", now["prefix_bytes"]),
            "pliant:kv_budget_bytes": ("Bytes that caches may take", now["cache_budget"]),
            "pliant:open_subnets": ("Engines that are open", now["open_subnets"]),
        }
        for name, (text, value) in gauges.items():
            yield _family(GaugeMetricFamily, name, text, self._model, value)
        counters = {
            "vllm:prompt_tokens": (
                "Tokens of prompts, those of kept prefixes too",
                counts["prompt_tokens"] + counts["reused_tokens"],
            ),
            "vllm:generation_tokens": ("Tokens written", counts["written_tokens"]),
            "vllm:num_preemptions": ("Texts that gave their cache up", counts["preemptions"]),
            "vllm:prefix_cache_queries": (
                "Tokens looked up among kept prefixes",
                counts["prompt_tokens"] + counts["reused_tokens"],
            ),
            "vllm:prefix_cache_hits": ("Tokens found there", counts["reused_tokens"]),
            "pliant:recomputed_tokens": ("Tokens computed again", counts["recomputed_tokens"]),
            "pliant:evictions": ("Kept prefixes given up", counts["evictions"]),
            "pliant:expired": ("Texts whose deadline passed", counts["expired"]),
            "pliant:steps": ("Steps computed", counts["steps"]),
        }
        joules = self._energy.joules()
        if joules is not None:
            counters["pliant:energy_joules"] = ("Spent by the processors since the start", joules)
        for name, (text, value) in counters.items():
            yield _family(CounterMetricFamily, name, text, self._model, value)


def _family(kind: Any, name: str, text: str, model: str, value: float) -> Any:
    family = kind(name, text, labels=["model_name"])
    family.add_metric([model], value)
    return family
