"""A text from logits: adjustments, ends, scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pliant.errors import GenerationError
from pliant.runtime import SamplingOptions, Tokenizer
from pliant.serve.grammar import GrammarCompiler
from pliant.serve.writer import Writer, WriterOptions

#: Token 0 ends a text; the others are the bytes.
VOCABULARY = 257


def make_writer(tokenizer: Tokenizer, grammar: Any = None, **changes: Any) -> Writer:
    sampling = {name: changes.pop(name) for name in ("stop", "max_tokens") if name in changes}
    options = WriterOptions(sampling=SamplingOptions(**sampling), **changes)
    return Writer(tokenizer, tokenizer.encode("ab"), options, 64, grammar)


def logits(tokenizer: Tokenizer, **scores: float) -> Any:
    row = np.zeros(VOCABULARY, np.float32)
    for letter, score in scores.items():
        row[tokenizer.encode(letter)] = score
    return row


def test_penalties_are_for_what_was_written_and_not_for_the_prompt(
    bytes_tokenizer: Tokenizer,
) -> None:
    """x leads by 3: presence alone never turns it, frequency does at the second time."""
    row = logits(bytes_tokenizer, x=8, y=5)
    for changes, text in (
        ({"presence_penalty": 2}, "xxxx"),
        ({"frequency_penalty": 2}, "xxyx"),
        ({"presence_penalty": 2, "frequency_penalty": 2}, "xyxx"),
        ({"logit_bias": {bytes_tokenizer.encode("a")[0]: 9.0}}, "aaaa"),
    ):
        writer = make_writer(bytes_tokenizer, **changes)
        assert "".join(writer.accept(row).text for _ in range(4)) == text, changes
        assert row[bytes_tokenizer.encode("x")[0]] == 8, "the logits of a batch are changed"


def test_every_end(bytes_tokenizer: Tokenizer) -> None:
    end = logits(bytes_tokenizer)
    end[0] = 9
    x = logits(bytes_tokenizer, x=9)
    assert make_writer(bytes_tokenizer).accept(end).finish_reason == "stop"
    written = make_writer(bytes_tokenizer, ignore_eos=True).accept(end)
    assert written.finish_reason is None and written.token != 0
    assert make_writer(bytes_tokenizer, max_tokens=1).accept(x).finish_reason == "length"
    writer = make_writer(bytes_tokenizer, stop=("xx",))
    first, second = writer.accept(x), writer.accept(x)
    assert (first.text, second.text, second.finish_reason) == ("", "", "stop")
    writer = make_writer(bytes_tokenizer, max_tokens=100)
    reasons = [writer.accept(x).finish_reason for _ in range(63)]
    assert reasons[-2:] == [None, "length"], "the context of 64 is full"


def test_what_is_held_back_comes_with_the_last_token(bytes_tokenizer: Tokenizer) -> None:
    writer = make_writer(bytes_tokenizer, stop=("xy",), max_tokens=2)
    x = logits(bytes_tokenizer, x=9)
    assert [writer.accept(x).text for _ in range(2)] == ["x"[:0], "xx"]


def test_plain_greedy_is_what_needs_no_logits(bytes_tokenizer: Tokenizer) -> None:
    assert make_writer(bytes_tokenizer, stop=("x",)).is_plain_greedy
    for changes in ({"logit_bias": {1: 1.0}}, {"top_logprobs": 0}, {"ignore_eos": True},
                    {"presence_penalty": 1}, {"frequency_penalty": 1}):  # fmt: skip
        assert not make_writer(bytes_tokenizer, **changes).is_plain_greedy
    assert make_writer(bytes_tokenizer).accept_token(5).token == 5


def test_a_prompt_computed_twice_is_scored_once(bytes_tokenizer: Tokenizer) -> None:
    writer = make_writer(bytes_tokenizer, top_logprobs=1, prompt_logprobs=True)
    rows = np.stack([logits(bytes_tokenizer, b=3), logits(bytes_tokenizer, x=3)])
    writer.read_prompt(0, rows)
    writer.read_prompt(0, rows)
    scores = writer.accept(rows[1]).prompt_scores
    assert [score.token for score in scores] == bytes_tokenizer.encode("ab")
    expected = 3 - np.log(np.exp(3.0) + VOCABULARY - 1)
    assert scores[1].logprob == pytest.approx(expected)
    assert scores[1].top == ((scores[1].token, scores[1].logprob),)


def test_scores_are_those_of_the_model_whatever_is_asked(bytes_tokenizer: Tokenizer) -> None:
    row = np.random.default_rng(1).normal(0, 3, VOCABULARY).astype(np.float32)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    likely = np.argsort(-exact)[:5].tolist()
    writer = make_writer(bytes_tokenizer, top_logprobs=5, logit_bias={7: 50.0})
    score = writer.accept(row).score
    assert score is not None and score.token == 7
    assert score.logprob == pytest.approx(exact[7], abs=1e-6)
    assert [token for token, _ in score.top] == likely
    assert [one for _, one in score.top] == pytest.approx(exact[likely].tolist(), abs=1e-6)


def test_a_grammar_ends_a_text_when_its_json_is_whole(bytes_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(bytes_tokenizer, VOCABULARY)
    grammar = compiler.compile({"enum": ["yes", "no"]})
    writer = make_writer(bytes_tokenizer, grammar)
    random, text, reason = np.random.default_rng(0), "", None
    while reason is None:
        emission = writer.accept(random.normal(0, 1, VOCABULARY).astype(np.float32))
        text, reason = text + emission.text, emission.finish_reason
    assert text in ('"yes"', '"no"') and reason == "stop"


def test_schemas_that_cannot_be(bytes_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(bytes_tokenizer, VOCABULARY)
    for schema in ({"type": "unheard of"}, {"enum": ["x" * 60_000]}):
        with pytest.raises(GenerationError, match="JSON schema"):
            compiler.compile(schema)


def test_logits_that_are_no_numbers(bytes_tokenizer: Tokenizer) -> None:
    with pytest.raises(GenerationError, match="damaged"):
        make_writer(bytes_tokenizer).accept(np.full(VOCABULARY, np.nan, np.float32))
