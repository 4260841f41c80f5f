"""The text of a tuning: token streams of files, and what to warn of before hours are spent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pliant.data import (
    Mixture,
    Source,
    bytes_per_token,
    cached_tokens,
    read_documents,
    stream_fingerprint,
)
from pliant.errors import DataError
from pliant.runtime import Tokenizer

#: Below this a tokenizer spells most of a text byte by byte.
_FEW_BYTES_PER_TOKEN = 1.5
#: Read more often than this, a text is learnt by heart (arXiv 2305.16264 finds little loss to 4).
_MANY_EPOCHS = 4
#: Characters of a text by which a tokenizer is judged.
_SAMPLE = 200_000


@dataclass(frozen=True, eq=False)
class TuningText:
    """Windows of all files, each in proportion to its tokens; their hash; warnings."""

    mixture: Mixture
    fingerprint: str
    num_tokens: int
    warnings: tuple[str, ...]


def tuning_text(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    tokenizer_file: Path,
    folder: Path,
    length: int,
    wanted_tokens: int,
    seed: int,
) -> TuningText:
    """Encode files once into `folder` and mix them; windows will have `length` tokens.

    `DataError` for a file that is missing, empty or shorter than two windows. Warns of text that
    the tokenizer hardly covers and of `wanted_tokens` that read it many times.
    """
    if not paths:
        raise DataError("Tuning needs text to learn from; name a UTF-8 file, or .txt.xz.")
    encoder = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()

    def encode(document: str) -> list[int]:
        return tokenizer.encode(document, add_bos=False)

    streams, warnings, names = [], [], hashlib.sha256()
    for path in paths:
        streams.append(cached_tokens(path, folder, encode, encoder, tokenizer.start_id))
        names.update(stream_fingerprint(path, encoder, tokenizer.start_id).encode())
        # The first window of each file: one that is too short is found before all other work.
        Mixture([Source(path.name, streams[-1], 1.0)], seed).windows(0, 1, length)
        sample = "".join(read_documents(path))[:_SAMPLE]
        covered = bytes_per_token([sample], encode)
        if covered < _FEW_BYTES_PER_TOKEN:
            warnings.append(
                f"The tokenizer hardly covers {path.name}: {covered:.2f} bytes per token. Text in "
                "a language the model knows tunes it better."
            )
    total = sum(stream.size for stream in streams)
    if wanted_tokens > _MANY_EPOCHS * total:
        warnings.append(
            f"The text has {total:,} tokens and will be read {wanted_tokens / total:.0f} times; "
            "give more of it, or take fewer steps."
        )
    shares = [stream.size / total for stream in streams]
    sources = [Source(p.name, s, share) for p, s, share in zip(paths, streams, shares, strict=True)]
    return TuningText(Mixture(sources, seed), names.hexdigest(), total, tuple(warnings))
