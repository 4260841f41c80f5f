"""What keys and values of fewer bits cost: the cache axis of the sensitivities of a build.

Shape suffixes: B windows, T tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.bits.cache import CacheFormat
from pliant.evaluate.text_loss import window_nats
from pliant.evaluate.windows import LogitReader, Window
from pliant.measurement import Progress, silent
from pliant.runtime import Engine
from pliant.search import FEWER_CACHE_BITS

#: Held-out windows that are read: the same tokens with each cache, so differences need few.
WINDOWS = 8


def cache_losses(
    artifact: Artifact,
    tokens_BT: NDArray[np.integer],
    dense_loss: float,
    progress: Progress = silent,
) -> dict[int, float]:
    """Loss in nats per token by the bits of cached keys and values, everything else full.

    What the engine loses against its float16 cache on held-out windows, added to `dense_loss`, so
    that 16 bits lose nothing. Codes are without their window: windows of a build are short, and
    behind a long context nearly all entries are codes. Fewer bits never count as better than more.
    Bits that no token of such windows would read are left out.
    """
    windows_BT = tokens_BT[:WINDOWS].astype(np.int32)
    last = windows_BT.shape[1] - 2
    formats = [CacheFormat(bits=bits, window=0) for bits in FEWER_CACHE_BITS]
    formats = [form for form in formats if not form.is_coded or form.folded(last)]
    total = len(formats) + 1
    progress("sensitivities of the cache", 0, total)
    plain = _loss(artifact, windows_BT, CacheFormat())
    found, worst = {16: dense_loss}, dense_loss
    for done, form in enumerate(formats, 1):
        progress("sensitivities of the cache", done, total)
        worst = max(worst, dense_loss + _loss(artifact, windows_BT, form) - plain)
        found[form.bits] = worst
    progress("sensitivities of the cache", total, total)
    return found


def _loss(artifact: Artifact, windows_BT: NDArray[np.int32], cache: CacheFormat) -> float:
    """Nats per token of the full model with such a cache."""
    subnet = artifact.subnet().with_cache(cache.bits, cache.window)
    length: int = windows_BT.shape[1] - 1
    with Engine(artifact, subnet) as engine:
        reader = LogitReader(engine, length)
        nats = [window_nats(reader, Window(row[:-1], row[1:], 0)) for row in windows_BT]
    return float(np.mean(nats)) / length
