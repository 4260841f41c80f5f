"""Token streams, seeded and split: corpora, caches, windows, calibration samples. NumPy only."""

from pliant.data.cache import cached_tokens, stream_fingerprint
from pliant.data.calibration import calibration_windows
from pliant.data.documents import (
    DOCUMENT_SEPARATOR,
    default_calibration_text,
    read_documents,
    read_text,
    split_documents,
)
from pliant.data.mixture import Mixture, Source
from pliant.data.tokens import TokenArray, bytes_per_token, encode_corpus, token_windows

__all__ = [
    "DOCUMENT_SEPARATOR",
    "Mixture",
    "Source",
    "TokenArray",
    "bytes_per_token",
    "cached_tokens",
    "calibration_windows",
    "default_calibration_text",
    "encode_corpus",
    "read_documents",
    "read_text",
    "split_documents",
    "stream_fingerprint",
    "token_windows",
]
