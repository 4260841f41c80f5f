"""On really trained models, generation writes token by token what transformers writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.runtime import Chunk, SamplingOptions, Tokenizer, generate, stream

torch = pytest.importorskip("torch", reason="transformers computes with torch")
transformers = pytest.importorskip("transformers", reason="it is what is compared with")


class ReferenceModel:
    """A transformers model as a `TokenModel`; computes every prefix anew."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.vocab_size: int = self.model.config.vocab_size
        self.max_context: int = self.model.config.max_position_embeddings

    def new_cache(self, capacity: int, max_bytes: int | None = None) -> Any:
        return SimpleNamespace(tokens=[], capacity=capacity)

    @torch.no_grad()
    def forward_chunk(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        results = []
        for chunk in chunks:
            chunk.cache.tokens += chunk.tokens.tolist()
            assert len(chunk.cache.tokens) <= chunk.cache.capacity
            logits = self.model(torch.tensor([chunk.cache.tokens])).logits[0, -1:].numpy()
            results.append(logits[: chunk.num_logits])
        return results

    def theirs(self, tokens: list[int], **options: Any) -> list[int]:
        """What `transformers` itself writes."""
        ids = torch.tensor([tokens])
        mask = torch.ones_like(ids)
        written = self.model.generate(ids, attention_mask=mask, do_sample=False, **options)
        return [int(token) for token in written[0, len(tokens) :]]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text(shared_model: Path, penalty: float) -> None:
    model, tokenizer = ReferenceModel(shared_model), Tokenizer.load(shared_model)
    prompt = "Once upon a time"
    expected = model.theirs(tokenizer.encode(prompt), max_new_tokens=30, repetition_penalty=penalty)
    options = SamplingOptions(max_tokens=30, repetition_penalty=penalty)
    found = generate(model, tokenizer, prompt, options)
    assert list(found.tokens) == expected
    reference = transformers.AutoTokenizer.from_pretrained(shared_model)
    ids = tokenizer.encode(prompt)
    before = reference.decode(ids, skip_special_tokens=True)
    whole = reference.decode([*ids, *expected], skip_special_tokens=True)
    assert before + found.text == whole


def test_the_end_token_ends_a_story(shared_model: Path) -> None:
    model, tokenizer = ReferenceModel(shared_model), Tokenizer.load(shared_model)
    # A token that this text reaches plays the end token.
    first = generate(model, tokenizer, "One day", SamplingOptions(max_tokens=12))
    end = first.tokens[7]
    ending = Tokenizer.load(shared_model)
    ending.eos_ids = frozenset({end})
    expected = model.theirs(tokenizer.encode("One day"), max_new_tokens=12, eos_token_id=end)
    found = generate(model, ending, "One day", SamplingOptions(max_tokens=12))
    assert list(found.tokens) == expected
    assert found.finish_reason == "stop"


def test_a_sampled_stream_joins(shared_model: Path) -> None:
    model, tokenizer = ReferenceModel(shared_model), Tokenizer.load(shared_model)
    options = SamplingOptions(temperature=1.5, seed=11, max_tokens=25)
    running = stream(model, tokenizer, "Once", options)
    text = "".join(piece.text for piece in running)
    assert text == running.generation.text
    reference = transformers.AutoTokenizer.from_pretrained(shared_model)
    ids = tokenizer.encode("Once")
    whole = reference.decode([*ids, *running.generation.tokens], skip_special_tokens=True)
    assert "\ufffd" in whole or "Once" + text == whole
