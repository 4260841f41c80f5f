"""The facade on a real artifact and the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pliant
from pliant.errors import ArtifactError, GenerationError, UsageError
from pliant.runtime import Pliant, SamplingOptions, Tokenizer
from pliant.runtime.text_engine import TextEngine

pytest.importorskip("torch", reason="the artifact of this test is built with torch")


@pytest.fixture(scope="module")
def opened(random_artifact: Path) -> Iterator[Pliant]:
    with pliant.open(random_artifact) as model:
        yield model


@pytest.fixture(scope="module")
def engine(opened: Pliant) -> TextEngine:
    return opened.engine("b4", threads=1)


def test_the_sentence_of_the_readme(random_artifact: Path) -> None:
    text = pliant.open(random_artifact).engine("b3").generate("Once upon a time", max_tokens=9)
    assert len(text.tokens) == 9 or text.finish_reason == "stop"
    assert str(text) == text.text


def test_streams_and_texts_agree(engine: TextEngine) -> None:
    options = SamplingOptions(temperature=1.0, seed=3, max_tokens=20)
    running = engine.stream("Once", options)
    assert "".join(piece.text for piece in running) == engine.generate("Once", options).text
    named = engine.generate("Once", temperature=1.0, seed=3, max_tokens=20)
    assert named.tokens == running.generation.tokens
    changed = engine.generate("Once", options, max_tokens=5)
    assert changed.tokens == named.tokens[:5]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_batch_mates_do_not_matter(opened: Pliant, activations: Any, temperature: float) -> None:
    engine = opened.engine("w0.5-b3", threads=2, activations=activations)
    prompts = ["Once upon a time", "x", "", "日本 and more, as long as a sentence. " * 2, "b"]
    options = SamplingOptions(temperature=temperature, seed=5, max_tokens=25, top_p=0.9)
    together = engine.generate_batch(prompts, options)
    alone = [engine.generate(prompt, options) for prompt in prompts]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_greedy_text_does_not_depend_on_threads(opened: Pliant) -> None:
    texts = {
        opened.engine("b4", threads=threads).generate("Once", max_tokens=30).tokens
        for threads in (1, 2, 3)
    }
    assert len(texts) == 1


def test_the_context_of_the_model_ends_a_text(engine: TextEngine) -> None:
    prompt = list(range(1, 121))
    found = engine.generate(prompt, temperature=2.0, max_tokens=1000)
    assert found.finish_reason in ("context", "stop")
    assert len(found.tokens) <= 9
    with pytest.raises(GenerationError, match="context is 128"):
        engine.generate([1] * 129)


class TestChat:
    def test_without_a_template_it_reads_lines(self, engine: TextEngine) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        plain = "User: Hi\nAssistant:"
        options = SamplingOptions(max_tokens=10, stop=("\nUser:", "\nSystem:"))
        expected = engine.generate(plain, options)
        assert engine.chat(messages, max_tokens=10).generation.tokens == expected.tokens

    def test_with_a_template_it_is_applied(self, opened: Pliant, random_artifact: Path) -> None:
        from pliant.runtime import ChatTemplate

        tokenizer = Tokenizer.load(random_artifact)
        tokenizer.chat_template = ChatTemplate({"default": "<{{ messages[0].content }}>"})
        engine = TextEngine(opened.engine("b4").engine, tokenizer)
        answer = engine.chat([{"role": "user", "content": "Hi"}], max_tokens=6).generation
        assert answer.tokens == engine.generate("<Hi>", max_tokens=6).tokens


class TestOpened:
    def test_engines_share_the_mapped_bytes(self, opened: Pliant) -> None:
        artifact = opened.artifact
        first, second = artifact.planes("embedding")[0], artifact.planes("embedding")[0]
        assert np.shares_memory(first, second)
        engines = [opened.engine(address, threads=1) for address in ("", "b2", "d2-w0.5-b3")]
        tokens = [engine.generate("Once", max_tokens=4).tokens for engine in engines]
        again = [engine.generate("Once", max_tokens=4).tokens for engine in reversed(engines)]
        assert tokens == again[::-1]

    def test_addresses_and_subnets(self, opened: Pliant) -> None:
        subnet = opened.subnet("d2-w0.5-b3")
        engine = opened.engine(subnet)
        assert engine.subnet == subnet == opened.engine("d2-w0.5-b3").subnet
        with pytest.raises(UsageError):
            opened.engine("no-such-cut")
        with pytest.raises(UsageError):
            opened.engine("b9")

    def test_closing_closes_every_engine(self, random_artifact: Path) -> None:
        with pliant.open(random_artifact) as model:
            engine = model.engine("b2")
        with pytest.raises(UsageError, match="closed"):
            engine.generate("Once", max_tokens=2)
        with model.engine("b2") as engine:
            engine.generate("Once", max_tokens=2)
        with pytest.raises(UsageError, match="closed"):
            engine.generate("Once", max_tokens=2)

    def test_a_folder_that_is_no_artifact(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing.pliant", tmp_path):
            with pytest.raises(ArtifactError):
                pliant.open(path)


def test_unknown_options_are_named(engine: TextEngine) -> None:
    with pytest.raises(UsageError, match="temprature is no sampling option; there are temper"):
        engine.generate("Once", temprature=1.0)
    with pytest.raises(GenerationError, match="top_p is 2"):
        engine.generate("Once", top_p=2)


class TestSwitching:
    def test_a_stream_goes_on_as_another_cut(self, opened: Pliant) -> None:
        """Pieces after an exact switch are those that the other cut writes behind the same text."""
        engine = opened.engine("d2-b3", threads=1)
        stream = engine.stream("Once", max_tokens=12)
        first = [next(stream).token for _ in range(5)]
        made = engine.switch("b8", entries="exact")
        assert (made.caches, made.outcome) == (1, "rebuilt")
        rest = [piece.token for piece in stream]
        prompt = [*opened.tokenizer.encode("Once"), *first]
        expected = opened.engine("b8", threads=1).generate(prompt, max_tokens=7)
        assert rest == list(expected.tokens)
        assert engine.subnet == opened.subnet("b8")

    def test_unknown_cuts_change_nothing(self, opened: Pliant) -> None:
        engine = opened.engine("b4", threads=1)
        before = engine.generate("Once", max_tokens=5).tokens
        for address in ("no-such-cut", "b9", "d99"):
            with pytest.raises(UsageError):
                engine.switch(address)
        assert engine.generate("Once", max_tokens=5).tokens == before
        assert engine.subnet == opened.subnet("b4")

    def test_an_engine_without_an_artifact_takes_subnets(self, opened: Pliant) -> None:
        engine = TextEngine(opened.engine("b4", threads=1).engine, opened.tokenizer)
        with pytest.raises(UsageError, match="give it a subnet"):
            engine.switch("b2")
        assert engine.switch(opened.subnet("b2")).after == engine.subnet
