"""Histograms as prometheus_client would write them."""

from __future__ import annotations

from typing import Any

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


def _samples(collector: Any) -> list[Any]:
    return [sample for family in collector.collect() for sample in family.samples]


def _plain(samples: list[Any]) -> list[tuple[str, list[tuple[str, str]], float]]:
    return sorted((one.name, sorted(one.labels.items()), one.value) for one in samples)
