"""From an address on the command line to the artifact, subnet and engine it names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pliant.measurement import format_seconds

if TYPE_CHECKING:
    from pliant.runtime import Generation
    from pliant.runtime.text_engine import TextEngine


@contextmanager
def open_engine(
    address: str,
    threads: int | None = None,
    kv_bits: int | None = None,
    kv_window: int | None = None,
) -> Iterator[TextEngine]:
    """The engine of `X.pliant@cut`, closed when the block ends.

    Its caches are those of the cut, or with `kv_bits` and `kv_window` those of every cut.
    """
    from pliant.artifact import split_address
    from pliant.bits.cache import CacheFormat
    from pliant.runtime.text_engine import open_artifact

    cache_type = None if kv_bits is None else CacheFormat(bits=kv_bits).type
    path, cut = split_address(address)
    with open_artifact(path) as opened:
        yield opened.engine(cut, threads=threads, cache_type=cache_type, cache_window=kv_window)


def measured_documents(path: Path | None, num_bytes: int | None) -> tuple[list[str], str]:
    """The documents to measure on and what to call them; without a path the packaged excerpt.

    `num_bytes` keeps only the beginning. Raises `DataError` where the file is missing, empty or
    not UTF-8.
    """
    from pliant.data import default_calibration_text, read_documents, split_documents
    from pliant.recipes.measure import excerpt

    if path is None:
        documents, name = split_documents(default_calibration_text()), "packaged text"
    else:
        documents, name = read_documents(path), path.name
    return (documents if num_bytes is None else excerpt(documents, num_bytes)), name


def generation_fields(generation: Generation) -> dict[str, object]:
    """A finished text and its timings, for JSON."""
    timings = generation.timings
    return {
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": generation.prompt_tokens,
        "tokens": len(generation.tokens),
        "first_token_seconds": timings.first_token_seconds,
        "tokens_per_second": timings.tokens_per_second,
    }


def speed_line(generation: Generation) -> str:
    """Prompt, tokens and speed of a finished text in one line."""
    timings = generation.timings
    return (
        f"prompt {generation.prompt_tokens} tokens in "
        f"{format_seconds(timings.first_token_seconds)}, "
        f"{len(generation.tokens)} tokens at {timings.tokens_per_second:.1f} token/s"
    )
