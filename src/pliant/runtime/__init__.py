"""From a subnet to text: engine, cache, tokenizer, sampling, generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pliant.runtime.chat import ChatTemplate, Message, plain_chat
from pliant.runtime.chunk import Chunk
from pliant.runtime.generation import (
    FinishReason,
    Generation,
    Piece,
    TextStream,
    Timings,
    generate,
    generate_batch,
    prompt_tokens,
    stream,
)
from pliant.runtime.model import Cache, TokenModel
from pliant.runtime.sampling import Sampler, SamplingOptions
from pliant.runtime.tokenizer import StreamingDecoder, Tokenizer

if TYPE_CHECKING:
    from pliant.runtime.engine import Engine
    from pliant.runtime.text_engine import Pliant, TextEngine, open_artifact

__all__ = [
    "Cache",
    "ChatTemplate",
    "Chunk",
    "Engine",
    "FinishReason",
    "Generation",
    "Message",
    "Piece",
    "Pliant",
    "Sampler",
    "SamplingOptions",
    "StreamingDecoder",
    "TextEngine",
    "TextStream",
    "Timings",
    "TokenModel",
    "Tokenizer",
    "generate",
    "generate_batch",
    "open_artifact",
    "plain_chat",
    "prompt_tokens",
    "stream",
]


def __getattr__(name: str) -> Any:
    """Load the engine only for those who ask: generation works with any `TokenModel`."""
    if name == "Engine":
        from pliant.runtime.engine import Engine

        return Engine
    if name in ("Pliant", "TextEngine", "open_artifact"):
        from pliant.runtime import text_engine

        return getattr(text_engine, name)
    raise AttributeError(f"pliant.runtime has no {name!r}; it offers {', '.join(__all__)}.")
