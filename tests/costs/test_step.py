"""Steps count what tokens see, as a mask would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.costs import Step, prefill_steps
from pliant.errors import UsageError


def seen_by_mask(step: Step, window: int) -> tuple[int, int]:
    """Entries seen, summed, and cached entries seen by anyone, by looking at each pair."""
    parents = step.parents or tuple(range(-1, step.tokens - 1))
    count, cached = 0, set()
    for token in range(step.tokens):
        chain, node = [], token
        while node >= 0:
            chain.append(node)
            node = parents[node]
        position = step.cached + len(chain) - 1
        near = [p for p in range(position + 1) if not window or position - p < window]
        count += len(near)
        cached |= {p for p in near if p < step.cached}
    return count, len(cached)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 30), st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.booleans(), st.sampled_from([0, 1, 4, 20]),
)  # fmt: skip
def test_visible_entries_are_those_of_a_mask(
    cached: int, back: list[int], tree: bool, window: int
) -> None:
    parents = tuple(max(-1, node - 1 - step) for node, step in enumerate(back))
    step = Step(tokens=len(back), cached=cached, logits=1, parents=parents if tree else None)
    assert (step.visible(window), step.cached_read(window)) == seen_by_mask(step, window)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 90), st.integers(0, 50), st.sampled_from([0, 7, 100]))
def test_chunks_see_what_one_prompt_sees(tokens: int, chunk: int, cached: int, window: int) -> None:
    parts = prefill_steps(tokens, chunk, cached)
    whole = Step(tokens=tokens, cached=cached)
    assert sum(part.visible(window) for part in parts) == whole.visible(window)
    assert sum(part.tokens for part in parts) == tokens
    assert [part.logits for part in parts] == [0] * (len(parts) - 1) + [1]


def test_causal_attention_is_half_of_a_square() -> None:
    assert Step(tokens=100).visible() == 100 * 101 // 2


def test_a_tree_of_one_chain_is_a_prompt() -> None:
    chain = Step.verify((-1, 0, 1, 2), context=9)
    assert chain.visible(6) == Step(tokens=4, cached=9).visible(6)
    assert chain.num_logits == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0}, {"cached": -1}, {"sequences": 0}, {"logits": 2},
        {"tokens": 2, "parents": (0,)}, {"tokens": 2, "parents": (-1, 1)},
    ],
)  # fmt: skip
def test_steps_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Step(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        prefill_steps(0)


def test_batches_are_counted_by_sequence() -> None:
    step = Step.decode(10, sequences=3)
    assert (step.num_tokens, step.num_logits, step.visible()) == (3, 3, 11)
    assert np.sum([step.visible()] * step.sequences) == 33
