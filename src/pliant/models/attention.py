"""Attention of the supernet: rotation, masks, the cache of keys and values, and the sum itself.

Shape suffixes: B sequences, T new tokens, S all tokens so far, N query heads, G KV groups,
H entries of a head, R rotated pairs (H / 2).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional

from pliant.spec import Rope


class KeyValueCache:
    """Rotated keys and values of the tokens seen so far, per block; fp tensors `[B, G, S, H]`.

    It belongs to one supernet and one shape; grown by concatenation, as the reference may.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def length(self, block: int | None = None) -> int:
        """Tokens stored for `block`, or for any block if none is named."""
        if block is None:
            return max((keys.shape[2] for keys, _ in self._entries.values()), default=0)
        return self._entries[block][0].shape[2] if block in self._entries else 0

    def extend(
        self, block: int, key_BGTH: torch.Tensor, value_BGTH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new keys and values of a block; returns all of them, `[B, G, S, H]` each."""
        if block in self._entries:
            past_key, past_value = self._entries[block]
            key_BGTH = torch.cat((past_key, key_BGTH), dim=2)
            value_BGTH = torch.cat((past_value, value_BGTH), dim=2)
        self._entries[block] = key_BGTH, value_BGTH
        return key_BGTH, value_BGTH

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        for block, (keys, values) in self._entries.items():
            self._entries[block] = keys[:, :, :length], values[:, :, :length]


@lru_cache(maxsize=8)
def rotation(
    rope: Rope, head_dim: int, start: int, count: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine `[T, R]`, fp32, for the positions `start` to `start + count - 1`."""
    with torch.inference_mode(False):  # a cached table may later take part in training
        frequency_R = torch.from_numpy(rope.frequencies(head_dim, start + count)).to(device)
        position_T = torch.arange(start, start + count, dtype=torch.float32, device=device)
        angle_TR = position_T[:, None] * frequency_R
        return angle_TR.cos() * rope.amplitude, angle_TR.sin() * rope.amplitude


def rotate(x_BNTH: torch.Tensor, cosine_TR: torch.Tensor, sine_TR: torch.Tensor) -> torch.Tensor:
    """Rotate each pair `(i, i + head_dim / 2)` by its angle (RoFormer, arXiv 2104.09864)."""
    first, second = x_BNTH.chunk(2, dim=-1)
    cosine, sine = cosine_TR.to(x_BNTH.dtype), sine_TR.to(x_BNTH.dtype)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


@lru_cache(maxsize=4)  # enough for the blocks of one forward; a mask may be large
def visible(count: int, total: int, window: int, device: torch.device) -> torch.Tensor:
    """Mask `[T, S]`, true where the last `count` of `total` tokens may look.

    A token sees itself and what came before, with a window no more than `window` tokens in all.
    """
    with torch.inference_mode(False):
        query_T1 = torch.arange(total - count, total, device=device)[:, None]
        key_S = torch.arange(total, device=device)
        causal_TS = key_S <= query_T1
        return causal_TS & (key_S > query_T1 - window) if window else causal_TS


def attend(
    query_BNTH: torch.Tensor,
    key_BGSH: torch.Tensor,
    value_BGSH: torch.Tensor,
    scale: float,
    softcap: float,
    window: int,
) -> torch.Tensor:
    """Causal grouped-query attention of the last T of S tokens; returns `[B, N, T, H]`."""
    count, total = query_BNTH.shape[2], key_BGSH.shape[2]
    repeats = query_BNTH.shape[1] // key_BGSH.shape[1]
    key_BNSH = key_BGSH.repeat_interleave(repeats, dim=1) if repeats > 1 else key_BGSH
    value_BNSH = value_BGSH.repeat_interleave(repeats, dim=1) if repeats > 1 else value_BGSH
    if softcap:
        score_BNTS = query_BNTH @ key_BNSH.transpose(2, 3) * scale
        score_BNTS = softcap * torch.tanh(score_BNTS / softcap)
        hidden_TS = ~visible(count, total, window, query_BNTH.device)
        score_BNTS = score_BNTS.masked_fill(hidden_TS, float("-inf"))
        return score_BNTS.softmax(dim=-1) @ value_BNSH
    windowed = 0 < window < total
    if count == total and not windowed:
        return functional.scaled_dot_product_attention(
            query_BNTH, key_BNSH, value_BNSH, is_causal=True, scale=scale
        )
    mask_TS = None
    if count > 1 or windowed:
        mask_TS = visible(count, total, window, query_BNTH.device)
    return functional.scaled_dot_product_attention(
        query_BNTH, key_BNSH, value_BNSH, attn_mask=mask_TS, scale=scale
    )
