"""Texts end where they should, streams join, and batch mates do not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from pliant.errors import GenerationError, UsageError
from pliant.runtime import (
    Chunk,
    Generation,
    SamplingOptions,
    Tokenizer,
    generate,
    generate_batch,
    stream,
)
from pliant.runtime.stop_strings import StopStrings

SAMPLED = SamplingOptions(
    temperature=1.0, top_p=0.95, repetition_penalty=1.2, max_tokens=30, seed=4
)


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    return make_model(vocab_size=400, max_context=64)


@pytest.fixture
def endless(backends: dict[str, tokenizers.Tokenizer]) -> Tokenizer:
    """A tokenizer without an end token."""
    return Tokenizer(backends["byte_level"])


def replay(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens computed one by one from scratch each time."""
    tokens = list(prompt)
    for _ in range(count):
        chunk = Chunk(np.array(tokens, np.int32), model.new_cache(len(tokens)))
        tokens.append(int(model.forward_chunk([chunk])[0][-1].argmax()))
    return tokens[len(prompt) :]


class ScriptedModel:
    """Writes given tokens whatever it reads, then the last one for ever."""

    vocab_size, max_context = 400, 100

    def __init__(self, make_cache: Callable[[int], Any], script: list[int], prompt: int) -> None:
        self.new_cache = make_cache
        self._script, self._prompt = script, prompt

    def forward_chunk(self, chunks: list[Chunk]) -> list[Any]:
        results = []
        for chunk in chunks:
            chunk.cache.tokens += chunk.tokens.tolist()
            place = min(chunk.cache.length - self._prompt, len(self._script) - 1)
            results.append(np.eye(400, dtype=np.float32)[[self._script[place]]])
        return results


@pytest.fixture
def scripted(make_model: Callable[..., Any], endless: Tokenizer) -> Callable[..., Any]:
    def make(text: str | list[int]) -> ScriptedModel:
        script = endless.encode(text) if isinstance(text, str) else text
        return ScriptedModel(make_model(400, 100).new_cache, script, prompt=1)

    return make


class TestEnds:
    def test_max_tokens(self, model: Any, endless: Tokenizer) -> None:
        found = generate(model, endless, [5, 6, 7], SamplingOptions(max_tokens=12))
        assert found.finish_reason == "length"
        assert list(found.tokens) == replay(model, [5, 6, 7], 12)
        assert found.prompt_tokens == 3
        assert found.text == endless.decode(found.tokens)

    def test_full_context(self, model: Any, endless: Tokenizer) -> None:
        found = generate(model, endless, list(range(60)), SamplingOptions(max_tokens=100))
        assert found.finish_reason == "context"
        assert list(found.tokens) == replay(model, list(range(60)), 5)
        longest = generate(model, endless, list(range(64)), SamplingOptions(max_tokens=100))
        assert (longest.finish_reason, len(longest.tokens)) == ("context", 1)

    def test_end_token_is_chosen_but_not_written(
        self, scripted: Callable[..., Any], endless: Tokenizer, tokenizer: Tokenizer
    ) -> None:
        script = [*endless.encode("The fox"), 0, 50]
        found = generate(scripted(script), tokenizer, [5])
        assert (found.text, found.finish_reason) == ("The fox", "stop")
        assert found.tokens == tuple(script[:-1])

    def test_incomplete_character_at_the_end(
        self, scripted: Callable[..., Any], endless: Tokenizer
    ) -> None:
        emoji = endless.encode("🙈")
        assert len(emoji) > 1
        found = generate(scripted(emoji), endless, [5], SamplingOptions(max_tokens=1))
        assert found.text == "\ufffd" == endless.decode(found.tokens)


class TestStopStrings:
    @pytest.mark.parametrize(
        ("stop", "expected"),
        [
            (("fox",), "The little "),
            (("tle f", "zzz"), "The lit"),
            (("wood", "he lives"), "The little fox, "),
            (("T",), ""),
            (("😀",), "The little fox, he lives in the wood "),
        ],
    )
    def test_text_ends_before_them(
        self,
        scripted: Callable[..., Any],
        endless: Tokenizer,
        stop: tuple[str, ...],
        expected: str,
    ) -> None:
        model = scripted("The little fox, he lives in the wood 😀 and more")
        running = stream(model, endless, [5], SamplingOptions(stop=stop, max_tokens=60))
        assert "".join(piece.text for piece in running) == expected
        assert running.generation.text == expected
        assert running.generation.finish_reason == "stop_string"

    def test_what_only_began_like_one_is_written(
        self, scripted: Callable[..., Any], endless: Tokenizer
    ) -> None:
        script = endless.encode("a fox")
        options = SamplingOptions(stop=("fox!",), max_tokens=len(script))
        assert generate(scripted(script), endless, [5], options).text == "a fox"

    def test_the_end_of_a_broken_character_may_complete_one(
        self, scripted: Callable[..., Any], endless: Tokenizer
    ) -> None:
        options = SamplingOptions(stop=("\ufffd",), max_tokens=1)
        found = generate(scripted(endless.encode("🙈")), endless, [5], options)
        assert found.text == ""

    @given(
        pieces=st.lists(st.text("ab", max_size=4), max_size=10),
        stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    )
    def test_any_division_gives_the_same_text(self, pieces: list[str], stops: list[str]) -> None:
        matcher = StopStrings(stops)
        shown = ""
        for piece in pieces:
            shown += matcher.push(piece)
            if matcher.found:
                break
        shown += "" if matcher.found else matcher.finish()
        # The first moment at which the text so far holds a stop string decides.
        text, expected = "", None
        for piece in pieces:
            text += piece
            places = [text.find(stop) for stop in stops if stop in text]
            if places:
                expected = text[: min(places)]
                break
        assert shown == (text if expected is None else expected)
        assert matcher.found == (expected is not None)


class TestStream:
    @pytest.mark.parametrize("options", [SamplingOptions(max_tokens=30), SAMPLED])
    def test_pieces_are_the_text(
        self, model: Any, tokenizer: Tokenizer, options: SamplingOptions
    ) -> None:
        running = stream(model, tokenizer, "Once upon", options)
        pieces = list(running)
        whole = generate(model, tokenizer, "Once upon", options)
        assert "".join(piece.text for piece in pieces) == whole.text == running.generation.text
        assert tuple(piece.token for piece in pieces) == whole.tokens
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish_reason == whole.finish_reason

    def test_a_stream_can_be_left_and_finished_later(self, model: Any, endless: Tokenizer) -> None:
        running = stream(model, endless, "Once upon", SamplingOptions(max_tokens=9))
        assert next(running).token == running.generation.tokens[0]
        assert len(running.generation.tokens) == 9

    def test_prompt_and_text_join(self, scripted: Callable[..., Any]) -> None:
        # The scripted tokens say " upon", and the space belongs to the text.
        import tokenizers as library

        backend = library.Tokenizer.from_str(FALLBACK)
        tokenizer = Tokenizer(backend)
        model = scripted([4])
        options = SamplingOptions(max_tokens=1)
        assert generate(model, tokenizer, [3], options).text == " upon"
        answer = stream(model, tokenizer, [3], options, continues=False)
        assert answer.generation.text == "upon"

    def test_timings(self, model: Any, endless: Tokenizer) -> None:
        timings = generate(model, endless, [5], SamplingOptions(max_tokens=5)).timings
        assert timings.decode_tokens == 4
        assert timings.first_token_seconds > 0
        assert timings.tokens_per_second == pytest.approx(4 / timings.decode_seconds)
        one = generate(model, endless, [5], SamplingOptions(max_tokens=1)).timings
        assert one.tokens_per_second == 0

    def test_a_long_prompt_is_read_in_parts(
        self, make_model: Callable[..., Any], endless: Tokenizer
    ) -> None:
        model = make_model(vocab_size=400, max_context=600)
        prompt = [place % 400 for place in range(301)]
        found = generate(model, endless, prompt, SamplingOptions(max_tokens=3))
        assert list(found.tokens) == replay(model, prompt, 3)


class TestBatch:
    @pytest.mark.parametrize("max_sequences", [1, 2, 8])
    def test_each_equals_its_single_run(
        self, model: Any, tokenizer: Tokenizer, max_sequences: int
    ) -> None:
        prompts = ["Once upon a time", [5], "hello", "", list(range(50)), "日本"]
        options = [
            SAMPLED,
            SamplingOptions(max_tokens=3),
            SamplingOptions(temperature=1.5, seed=9, max_tokens=50, stop=("e",)),
            SAMPLED,
            SamplingOptions(max_tokens=40),
            SamplingOptions(temperature=0.5, min_p=0.1, top_k=9, max_tokens=17),
        ]
        singles = [
            generate(model, tokenizer, prompt, choice)
            for prompt, choice in zip(prompts, options, strict=True)
        ]
        model.batch_sizes.clear()
        together = generate_batch(model, tokenizer, prompts, options, max_sequences=max_sequences)
        assert [strip(one) for one in together] == [strip(one) for one in singles]
        assert max(model.batch_sizes) == min(max_sequences, len(prompts))

    def test_one_set_of_options_serves_all(self, model: Any, tokenizer: Tokenizer) -> None:
        first, second = generate_batch(model, tokenizer, ["hello", "hello"], SAMPLED)
        assert strip(first) == strip(second)
        assert generate_batch(model, tokenizer, []) == []

    def test_counts_that_do_not_match(self, model: Any, tokenizer: Tokenizer) -> None:
        with pytest.raises(UsageError, match="2 prompts came with 1 options"):
            generate_batch(model, tokenizer, ["a", "b"], [SAMPLED])
        with pytest.raises(UsageError, match="at least 1 at a time"):
            generate_batch(model, tokenizer, ["a"], max_sequences=0)


class TestPrompts:
    def test_longer_than_the_context(self, model: Any, tokenizer: Tokenizer) -> None:
        with pytest.raises(GenerationError, match=r"65 tokens.*context is 64.*by 1 tokens"):
            generate(model, tokenizer, [1] * 65)

    def test_beyond_the_vocabulary(self, model: Any, tokenizer: Tokenizer) -> None:
        with pytest.raises(GenerationError, match="Token 400"):
            generate(model, tokenizer, [1, 400])
        with pytest.raises(GenerationError, match="Token -1"):
            generate(model, tokenizer, [-1])

    def test_an_empty_prompt_begins_at_the_start_token(
        self, model: Any, tokenizer: Tokenizer, endless: Tokenizer
    ) -> None:
        options = SamplingOptions(max_tokens=4)
        from_start = generate(model, tokenizer, [0], options)
        assert strip(generate(model, tokenizer, "", options)) == strip(from_start)
        with pytest.raises(GenerationError, match="prompt is empty"):
            generate(model, endless, "")

    def test_an_interrupted_stream_has_no_result(self, model: Any, endless: Tokenizer) -> None:
        running = stream(model, endless, "hello", SamplingOptions(max_tokens=9))
        next(running)
        running._pieces.close()  # type: ignore[attr-defined]
        with pytest.raises(GenerationError, match="not finished"):
            _ = running.generation


def strip(generation: Generation) -> tuple[Any, ...]:
    """All of a generation but its timings."""
    return (
        generation.text,
        generation.tokens,
        generation.finish_reason,
        generation.prompt_tokens,
    )


FALLBACK = """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
"normalizer": null, "pre_tokenizer": null, "post_processor": null,
"decoder": {"type": "Sequence", "decoders": [
{"type": "Replace", "pattern": {"String": "\\u2581"}, "content": " "},
{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
"model": {"type": "WordLevel", "unk_token": "<unk>",
"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "\\u2581Once": 3, "\\u2581upon": 4}}}"""
