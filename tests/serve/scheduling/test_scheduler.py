"""Each rule of the scheduler by an example."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from pliant.errors import GenerationError, UsageError
from pliant.serve.scheduling import Copy, Drop, Limits, Take, TooBusyError, Work

#: Room for far more than any of these tests computes.
AMPLE = 1_000_000


def make_work(name: str, prompt: tuple[int, ...] = (1, 2, 3), **changes: Any) -> Work:
    fields = {"client": "a", "lane": "large", "max_tokens": 4, **changes}
    return Work(name=name, prompt=prompt, **fields)


def long_prompt(length: int, first: int = 1) -> tuple[int, ...]:
    return (first, *range(100, 100 + length - 1))


def endless(simulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that never end a text."""
    monkeypatch.setattr(simulation, "next_token", lambda tokens: 1 + hash(tokens) % 6)


def test_prompts_are_computed_in_parts_beside_decoding(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(simulation, monkeypatch)
    limits = Limits(cache_bytes=AMPLE, max_step_tokens=16, step_nanoseconds=10**12)
    run = simulation.Simulation(limits)
    run.submit(make_work("short", max_tokens=20))
    run.step()
    run.submit(make_work("long", long_prompt(60)))
    parts = [run.step().slices for _ in range(4)]
    for slices in parts:
        assert [(part.name, len(part.tokens)) for part in slices] == [("short", 1), ("long", 15)]
    assert [slices[1].chooses for slices in parts] == [False, False, False, True]


def test_a_step_is_as_long_as_its_time_allows(simulation: ModuleType) -> None:
    """The simulated machine takes 10 ms and 1 ms for each token."""
    limits = Limits(cache_bytes=AMPLE, step_nanoseconds=30_000_000, min_prefill_tokens=2)
    run = simulation.Simulation(limits)
    for place in range(12):
        run.submit(make_work(f"{place}", long_prompt(90, place), max_tokens=2))
    for _ in range(8):
        run.step()
    assert run.step().num_tokens == 20


def test_of_equal_rights_the_shorter_prompt_of_another_client_does_not_wait(
    simulation: ModuleType,
) -> None:
    """A prompt of 90 tokens and one of 5: the least served client's goes first within a step."""
    limits = Limits(cache_bytes=AMPLE, max_step_tokens=16, step_nanoseconds=10**12)
    run = simulation.Simulation(limits)
    run.submit(make_work("long", long_prompt(90)))
    run.step()
    run.submit(make_work("short", (7, 8, 9, 10, 11), client="b"))
    # The new client starts with the debt of the least indebted one, which arrived before it.
    assert [part.name for part in run.step().slices] == ["long"]
    assert [(part.name, len(part.tokens)) for part in run.step().slices] == [
        ("short", 5),
        ("long", 11),
    ]


def test_a_finished_text_is_used_on_by_the_next_turn_of_its_talk(simulation: ModuleType) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    run.submit(make_work("first", long_prompt(40), max_tokens=1))
    run.drain()
    run.submit(make_work("second", (*long_prompt(40), 5, 6, 7)))
    plan = run.step()
    assert [type(move) for move in plan.moves] == [Take]
    assert plan.slices[0].begin == 40
    assert run.scheduler.reused_tokens("second") == 40
    assert run.scheduler.counts.prefix_hits == 1


def test_a_common_beginning_is_copied_and_what_follows_it_stays(simulation: ModuleType) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    run.submit(make_work("first", (*long_prompt(40), 1, 2), max_tokens=1))
    run.drain()
    run.submit(make_work("second", (*long_prompt(40), 3, 4)))
    plan = run.step()
    assert [(type(move), move.length) for move in plan.moves] == [(Copy, 40)]
    run.submit(make_work("third", (*long_prompt(40), 1, 2, 9)))
    assert run.step().slices[-1].begin == 42
    run.drain()
    run.check_all()


def test_all_of_a_prompt_may_be_known_but_for_its_last_token(simulation: ModuleType) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    for name in ("first", "second"):
        run.submit(make_work(name, long_prompt(33), max_tokens=1))
        run.drain()
    assert run.scheduler.counts.reused_tokens == 32
    run.check_all()


@pytest.mark.parametrize(
    "changes", [{"salt": "other"}, {"lane": "small"}, {"prompt_logits": True}], ids=str
)
def test_prefixes_are_not_shared_where_they_must_not_be(
    simulation: ModuleType, changes: dict[str, Any]
) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    run.submit(make_work("first", long_prompt(40)))
    run.drain()
    run.submit(make_work("second", long_prompt(40), **changes))
    run.drain()
    assert run.scheduler.counts.prefix_hits == 0


def test_followers_share_the_prompt_of_their_leader(simulation: ModuleType) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    run.submit(make_work("leader", long_prompt(50)))
    for place in range(3):
        run.submit(make_work(f"choice-{place}", long_prompt(50), leader="leader"))
    run.drain()
    run.check_all()
    assert run.scheduler.counts.prompt_tokens == 50 + 3
    assert run.scheduler.counts.reused_tokens == 3 * 49


def test_a_follower_of_a_leader_that_fails_goes_on_alone(simulation: ModuleType) -> None:
    run = simulation.Simulation(
        Limits(cache_bytes=AMPLE, max_step_tokens=16, step_nanoseconds=10**12)
    )
    run.submit(make_work("leader", long_prompt(50)))
    run.submit(make_work("follower", long_prompt(50), leader="leader"))
    run.step()
    assert run.scheduler.num_waiting == 1
    run.fail("leader")
    run.drain()
    run.check_all()


def test_prefixes_give_way_oldest_first(simulation: ModuleType) -> None:
    """Each takes 80 of 96 entries: the third needs the bytes of the first."""
    run = simulation.Simulation(Limits(cache_bytes=2 * 96 * 8))
    for first in (1, 2, 3):
        run.submit(make_work(f"{first}", long_prompt(70, first)))
        run.drain()
    assert run.scheduler.counts.evictions == 1
    run.submit(make_work("again", (*long_prompt(70, 2), 5)))
    run.drain()
    assert run.scheduler.counts.prefix_hits == 1
    run.check_all()


def test_the_latest_gives_way_and_its_text_is_the_same(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(simulation, monkeypatch)
    limits = Limits(cache_bytes=96 * 8 * 3 // 2, page_tokens=4)
    run = simulation.Simulation(limits)
    for name in ("first", "second"):
        run.submit(make_work(name, (3, *name.encode()), max_tokens=80))
    run.drain()
    run.check_all()
    assert run.scheduler.counts.preemptions > 0
    assert run.scheduler.counts.recomputed_tokens > 0


def test_a_cache_that_cannot_grow_beside_itself_is_computed_again(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(simulation, monkeypatch)
    run = simulation.Simulation(Limits(cache_bytes=96 * 8, page_tokens=16))
    run.submit(make_work("only", (3, 4), max_tokens=90))
    run.drain()
    run.check_all()
    assert run.scheduler.counts.preemptions == 1


def test_lanes_take_turns_by_the_time_they_take(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(simulation, monkeypatch)
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    for lane in ("large", "small"):
        run.submit(make_work(lane, lane=lane, max_tokens=40))
    lanes = [run.step().lane for _ in range(20)]
    assert lanes.count("large") == lanes.count("small") == 10


def test_deadlines_end_what_waits_and_what_runs(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(simulation, monkeypatch)
    run = simulation.Simulation(Limits(cache_bytes=AMPLE, max_sequences=1))
    run.submit(make_work("runs", max_tokens=90, deadline=40))
    run.submit(make_work("waits", deadline=40))
    run.submit(make_work("comes later", deadline=10_000))
    expired = [name for _ in range(10) for name in run.step().expired]
    assert expired == ["runs", "waits"]
    run.drain()
    assert run.finished == {"comes later"}


def test_a_cancelled_text_frees_its_place_and_leaves_its_prefix(simulation: ModuleType) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE, max_sequences=1))
    run.submit(make_work("gone", long_prompt(40)))
    run.step(during=("gone",))
    run.submit(make_work("next", (*long_prompt(40), 9)))
    run.drain()
    run.check_all()
    assert run.scheduler.counts.prefix_hits == 1


def test_too_many_are_refused_with_a_time_to_come_back(simulation: ModuleType) -> None:
    limits = Limits(cache_bytes=AMPLE, max_waiting=3, max_waiting_per_client=2)
    scheduler = simulation.Simulation(limits).scheduler
    for name in ("1", "2"):
        scheduler.submit(make_work(name))
    with pytest.raises(TooBusyError, match="2 of them yours"):
        scheduler.submit(make_work("3"))
    scheduler.submit(make_work("3", client="b"))
    with pytest.raises(TooBusyError) as refusal:
        scheduler.submit(make_work("4", client="c"))
    assert refusal.value.retry_after == 1
    assert scheduler.counts.refused == 2


def test_what_can_never_fit_is_refused_at_once(simulation: ModuleType) -> None:
    scheduler = simulation.Simulation(Limits(cache_bytes=50 * 8)).scheduler
    with pytest.raises(GenerationError, match="shorten the prompt by 4 tokens"):
        scheduler.submit(make_work("long", long_prompt(100)))
    with pytest.raises(GenerationError, match="enough for 48 tokens"):
        scheduler.submit(make_work("large", long_prompt(40), max_tokens=20))
    with pytest.raises(GenerationError, match="at least one token"):
        scheduler.submit(make_work("empty", ()))
    assert scheduler.max_tokens("large") == 48
    scheduler.submit(make_work("one"))
    with pytest.raises(UsageError, match="already"):
        scheduler.submit(make_work("one"))
    assert not scheduler.has_work or scheduler.num_waiting == 1


def test_a_lane_goes_when_it_is_idle(simulation: ModuleType) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    run.submit(make_work("one", long_prompt(40)))
    with pytest.raises(UsageError, match="in use"):
        run.scheduler.remove_lane("large")
    run.drain()
    run.scheduler.remove_lane("large")
    assert [type(move) for move in run.step().moves] == [Drop]
    with pytest.raises(UsageError, match="already"):
        run.scheduler.add_lane("small", 1, 1)


@pytest.mark.parametrize("name", Limits.__struct_fields__)
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Limits(**{"cache_bytes": 1, name: 0})


def test_more_sequences_than_a_step_has_tokens() -> None:
    with pytest.raises(UsageError, match="run fewer"):
        Limits(cache_bytes=1, max_sequences=9, max_step_tokens=8)


def test_steps_of_a_plan_go_as_far_as_nothing_else_can_happen(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulated machine takes 11 ms for a step of one token, 12 for one of two."""
    endless(simulation, monkeypatch)
    limits = Limits(cache_bytes=AMPLE, step_nanoseconds=200_000_000)
    run = simulation.Simulation(limits)
    run.submit(make_work("one", max_tokens=30))
    assert run.step().steps == 1  # a prompt
    run.step()
    assert run.step(most_steps=4).steps == 200 // 11
    run.submit(make_work("two", (5, 6), max_tokens=9))
    run.submit(make_work("elsewhere", lane="small", max_tokens=3))
    assert run.step().steps == 1
    run.cancel("elsewhere")
    while not run.written["two"]:
        assert run.step().steps == 1  # a prompt again
    # What is left of the shorter text, each token but its first and the one that is written last.
    assert run.step(most_steps=99).steps == 8
    run.drain()
    run.check_all()


def test_a_cache_is_counted_as_long_as_it_was_though_a_text_had_ended(
    simulation: ModuleType,
) -> None:
    run = simulation.Simulation(Limits(cache_bytes=AMPLE))
    run.submit(make_work("one", (1, 2, 3), max_tokens=20))
    plan = run.scheduler.plan(0)
    run.scheduler.complete(plan, {"one": [4, 5, 6]}, {"one"}, 1, steps=9)
    (holding,) = run.scheduler.pool
    assert holding.tokens == [1, 2, 3, 4, 5, 6] and holding.longest == 3 + 8
