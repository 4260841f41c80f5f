"""Many steps in one call are those steps, and it ends early where it should."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.errors import GenerationError, UsageError
from pliant.runtime import Chunk, Engine, SamplingOptions
from pliant.runtime.engine import Interrupt
from pliant.runtime.sampling import Sampler

EngineMaker = Callable[..., Engine]
PROMPTS = ((3, 1, 4, 1, 5), (9, 2), (6,))


def caches_of(engine: Engine, capacity: int = 64) -> list[Any]:
    """A cache for each prompt, all of it but its last token in it."""
    caches = [engine.new_cache(capacity) for _ in PROMPTS]
    for prompt, cache in zip(PROMPTS, caches, strict=True):
        if len(prompt) > 1:
            engine.forward_chunk([Chunk(prompt[:-1], cache, logits="none")])
    return caches


def step_by_step(engine: Engine, steps: int) -> NDArray[np.int32]:
    """What `greedy` writes on to the prompts, `[steps, prompts]`."""
    caches, rows = caches_of(engine), [[prompt[-1] for prompt in PROMPTS]]
    for _ in range(steps):
        chunks = [Chunk([token], cache) for token, cache in zip(rows[-1], caches, strict=True)]
        rows.append([int(chosen[0]) for chosen in engine.greedy(chunks)])
    return np.array(rows[1:], np.int32)


def run(engine: Engine, caches: Sequence[Any], steps: int, **options: Any) -> NDArray[np.int32]:
    return engine.continue_texts(caches, [p[-1] for p in PROMPTS], steps, **options)


@pytest.mark.parametrize(
    "options", [{}, {"cache_type": "int4"}, {"head_screen": 3}, {"threads": 2}]
)
def test_a_run_is_its_steps(make_engine: EngineMaker, options: dict[str, Any]) -> None:
    engine = make_engine(options)
    expected, caches = step_by_step(engine, 40), caches_of(engine)
    found = [run(engine, caches, 25)]
    found.append(engine.continue_texts(caches, found[0][-1].tolist(), 15))
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert found[0].dtype == np.int32
    # The token chosen last is in no cache yet.
    assert [cache.length for cache in caches] == [len(prompt) - 1 + 40 for prompt in PROMPTS]


OPTIONS = (
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 0.0, "repetition_penalty": 1.5},
)


def samplers_of() -> list[Sampler]:
    """One of each kind; the last is greedy, with a penalty."""
    return [
        Sampler(SamplingOptions(**options), prompt, presence_penalty=0.5, excluded=[7])  # type: ignore[arg-type]
        for options, prompt in zip(OPTIONS, PROMPTS, strict=True)
    ]


def drawn_step_by_step(engine: Engine, steps: int) -> NDArray[np.int32]:
    caches, samplers = caches_of(engine), samplers_of()
    rows = [[prompt[-1] for prompt in PROMPTS]]
    for _ in range(steps):
        chunks = [Chunk([token], cache) for token, cache in zip(rows[-1], caches, strict=True)]
        logits = engine.forward_chunk(chunks)
        rows.append([one.sample(row[0]) for one, row in zip(samplers, logits, strict=True)])
    return np.array(rows[1:], np.int32)


def test_a_drawn_run_is_its_steps(make_engine: EngineMaker) -> None:
    """Whatever the texts' options, and however a run is cut: numbers not used stay for later."""
    engine = make_engine()
    expected = drawn_step_by_step(engine, 40)
    caches, samplers, interrupt = caches_of(engine), samplers_of(), Interrupt()
    found = [run(engine, caches, 13, samplers=samplers)]
    interrupt.set()
    for steps in (20, 1, 25):
        last = found[-1][-1].tolist()
        found.append(
            engine.continue_texts(caches, last, steps, samplers=samplers, interrupt=interrupt)
        )
        interrupt.clear()
    np.testing.assert_array_equal(np.concatenate(found), expected)
    # One step alone goes on from there.
    chunks = [Chunk([token], cache) for token, cache in zip(found[-1][-1], caches, strict=True)]
    logits = engine.forward_chunk(chunks)
    more = [one.sample(row[0]) for one, row in zip(samplers, logits, strict=True)]
    assert more == drawn_step_by_step(engine, 41)[-1].tolist()
    assert 7 not in expected


def test_a_draw_that_fails_leaves_the_samplers_as_they_were(make_engine: EngineMaker) -> None:
    engine = make_engine()
    sound, penalized = (
        Sampler(SamplingOptions(temperature=1.0), frequency_penalty=penalty) for penalty in (0, 9)
    )
    beyond = Sampler(SamplingOptions(temperature=1.0), logit_bias={5000: 1.0})
    with pytest.raises(GenerationError, match="5000"):
        run(engine, caches_of(engine), 5, samplers=[sound, penalized, beyond])
    fresh = [
        Sampler(SamplingOptions(temperature=1.0), frequency_penalty=penalty) for penalty in (0, 9)
    ]
    assert sound.numbers(3) == fresh[0].numbers(3)
    caches = caches_of(engine)
    found = run(engine, caches, 9, samplers=[sound, penalized, samplers_of()[2]])
    same = run(engine, caches_of(engine), 9, samplers=[*fresh, samplers_of()[2]])
    np.testing.assert_array_equal(found, same)
    with pytest.raises(UsageError, match="one of each"):
        run(engine, caches, 5, samplers=[sound])


def test_it_ends_behind_the_step_that_chose_an_end(make_engine: EngineMaker) -> None:
    engine = make_engine()
    expected, caches = step_by_step(engine, 30), caches_of(engine)
    end = int(expected[12, 1])
    found = run(engine, caches, 30, ends={end, 130})
    first = int(np.flatnonzero(np.isin(expected, (end, 130)).any(axis=1))[0])
    np.testing.assert_array_equal(found, expected[: first + 1])
    assert caches[0].length == len(PROMPTS[0]) + first


def test_it_ends_where_a_cache_is_full(make_engine: EngineMaker) -> None:
    engine = make_engine()
    caches = caches_of(engine, 16)
    assert run(engine, caches, 2**40).shape == (16 - len(PROMPTS[0]) + 1, 3)
    assert caches[0].length == caches[0].capacity == 16
    with pytest.raises(GenerationError, match="16"):
        run(engine, caches, 1)


def test_an_interrupt_of_another_thread_is_heard(make_engine: EngineMaker) -> None:
    engine, interrupt = make_engine(max_context=20_000), Interrupt()
    caches = caches_of(engine, 20_000)
    interrupt.set()
    assert len(run(engine, caches, 9, interrupt=interrupt)) == 1
    interrupt.clear()
    assert not interrupt.is_set
    assert len(run(engine, caches, 9, interrupt=interrupt)) == 9
    threading.Timer(0.05, interrupt.set).start()
    assert len(run(engine, caches, 19_000, interrupt=interrupt)) < 19_000
    assert interrupt.is_set


def test_ctrl_c_is_heard(make_engine: EngineMaker) -> None:
    engine = make_engine(max_context=100_000)
    cache = engine.new_cache(100_000)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        while time.monotonic() < started + 30:
            engine.continue_texts([cache], [1], 99_999)
            cache.truncate(0)


def test_the_first_step_raises_what_greedy_raises(make_engine: EngineMaker) -> None:
    engine = make_engine()
    caches = caches_of(engine)
    for tokens in ([1, 2, 999], [1, -1, 2]):
        with pytest.raises(GenerationError, match="vocabulary"):
            engine.continue_texts(caches, tokens, 5)
    with pytest.raises(UsageError, match="another engine"):
        engine.continue_texts([make_engine().new_cache(4)], [1], 5)
    with pytest.raises(UsageError, match="share one cache"):
        engine.continue_texts([caches[0], caches[0]], [1, 2], 5)
    with pytest.raises(UsageError, match="is no cache"):
        engine.continue_texts([None], [1], 5)
    for held, tokens, steps in (([], [], 1), (caches, [1], 1), (caches, [1, 2, 3], 0)):
        with pytest.raises(UsageError, match="one of each"):
            engine.continue_texts(held, tokens, steps)
    assert [cache.length for cache in caches] == [len(prompt) - 1 for prompt in PROMPTS]
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.continue_texts(caches, [1, 2, 3], 5)
