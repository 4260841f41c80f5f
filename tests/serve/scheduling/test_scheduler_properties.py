"""Whatever clients do: nobody starves, no cache leaks or is shared by mistake, the budget holds."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pliant.serve.scheduling import Limits, Work

_SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

#: Prompts with common beginnings of a page and more.
PROMPTS = st.tuples(
    st.sampled_from([(), (1,) * 5, (1, 2) * 6, (1, 2) * 14, (3,) * 40]),
    st.lists(st.integers(0, 6), min_size=1, max_size=12).map(tuple),
).map(lambda parts: (*parts[0], *parts[1]))

EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.sampled_from("abc"),
            st.sampled_from(["large", "small"]),
            PROMPTS,
            st.integers(1, 40),
            st.sampled_from([None, None, None, 60, 400]),
            st.booleans(),
            st.booleans(),
        ),
        st.tuples(st.just("step"), st.integers(0, 40), st.sampled_from([1, 2, 30])),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("fail"), st.integers(0, 40)),
    ),
    max_size=60,
)

LIMITS = st.builds(
    Limits,
    # The largest work there can be (96 tokens of 8 bytes) just fits.
    cache_bytes=st.sampled_from([800, 1000, 1500, 4000, 100_000]),
    max_sequences=st.integers(1, 8),
    max_waiting=st.sampled_from([3, 100]),
    page_tokens=st.sampled_from([1, 4, 16]),
    step_nanoseconds=st.sampled_from([1, 20_000_000, 10**12]),
    max_step_tokens=st.sampled_from([8, 32, 256]),
    min_prefill_tokens=st.integers(1, 16),
    max_logit_rows=st.integers(1, 8),
)


@_SETTINGS
@given(limits=LIMITS, events=EVENTS)
def test_every_promise_under_any_events(
    simulation: ModuleType, limits: Limits, events: list[tuple[Any, ...]]
) -> None:
    run = simulation.Simulation(limits)
    names: list[str] = []
    for event in events:
        match event:
            case ("submit", client, lane, prompt, most, deadline, rows, follows):
                work = Work(
                    name=f"work-{len(names)}",
                    client=client,
                    lane=lane,
                    prompt=prompt,
                    max_tokens=most,
                    deadline=None if deadline is None else run.clock + deadline,
                    prompt_logits=rows,
                    leader=names[-1] if follows and names else None,
                )
                if run.submit(work):
                    names.append(work.name)
            case ("step", count, steps):
                run.step(during=(names[count],) if count < len(names) else (), most_steps=steps)
            case ("cancel", count) if count < len(names):
                run.cancel(names[count])
            case ("fail", count) if count < len(names):
                run.fail(names[count])
    run.drain()
    run.check_all()
    for name in run.finished:
        work = run.works[name]
        if work.prompt_logits:
            assert run.rows[name] >= len(work.prompt)


@settings(_SETTINGS, max_examples=12)
@given(heavy=st.integers(20, 60), steps=st.integers(1, 200), sequences=st.sampled_from([1, 2, 4]))
def test_a_client_that_floods_cannot_crowd_out_another(
    simulation: ModuleType, heavy: int, steps: int, sequences: int
) -> None:
    """The service of two clients that both wait differs by at most what is running: the bound of
    virtual token counters."""
    limits = Limits(cache_bytes=1_000_000, max_sequences=sequences, max_waiting_per_client=200)
    run = simulation.Simulation(limits)
    for place in range(heavy):
        run.submit(_work(f"flood-{place}", "flood", 24 + place % 9))
    for place in range(heavy):
        run.submit(_work(f"modest-{place}", "modest", 24 + place % 7))
    queue = run.scheduler._queue
    for _ in range(steps):
        run.step()
        if not (queue.waiting("flood") and queue.waiting("modest")):
            break
        most_of_one = 40 + 2 * 12
        difference = abs(queue.counter("flood") - queue.counter("modest"))
        assert difference <= 2 * (sequences + 1) * most_of_one
    run.drain()
    run.check_all()


def _work(name: str, client: str, length: int) -> Work:
    prompt = (1, *name.encode(), *range(length))[:length]
    return Work(name=name, client=client, lane="large", prompt=prompt, max_tokens=12)
