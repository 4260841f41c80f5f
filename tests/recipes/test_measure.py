"""A receipt: quality, size and speed of one subnet, measured with the engine."""

from __future__ import annotations

from pathlib import Path

from pliant.recipes.measure import measure
from pliant.runtime.text_engine import open_artifact


def test_a_receipt_has_what_was_measured(random_artifact: Path) -> None:
    documents = ["A fox lives in the wood. " * 9]
    with open_artifact(random_artifact) as model:
        receipt = measure(model, "d3-b4", documents, text_name="a fox", context=32, threads=1)
        subnet = model.subnet("d3-b4")
    assert receipt.address == "d3-b4"
    assert receipt.weight_bytes == subnet.weight_bytes < receipt.memory_bytes
    assert receipt.speed is not None
    assert (receipt.speed.unit, receipt.speed.conditions) == ("token/s", "1 thread")
    assert receipt.speed.low > 0
    assert receipt.conditions.threads == 1
    assert receipt.conditions.tokens > 0
