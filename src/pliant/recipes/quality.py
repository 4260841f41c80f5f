"""Receipts of a build: how far the stored planes are from the dense model, by what the engine says.

Shape suffixes: B sequences, T tokens, N tokens of a window, V vocabulary.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.calibrate import BATCH_SIZE, BlockErrors, run_blocks
from pliant.costs import WorkingSet, subnet_memory
from pliant.errors import QualityFloorError, VerificationError
from pliant.evaluate import kl_nats, token_nats
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.receipt import Conditions, Receipt
from pliant.runtime import Chunk, Engine, SamplingOptions, Tokenizer
from pliant.runtime.text_engine import TextEngine

#: Plane counts of which a build gives a receipt, beside all that are stored.
COUNTS = (2, 3, 4)
#: Held-out windows that are read: KL holds no luck of the next token, so few are enough.
WINDOWS = 16
#: What every receipt writes on, so that a broken cut is seen at a glance.
CANARY = "Once upon a time"
_CANARY_TOKENS = 16


class _Compared(NamedTuple):
    """One number per token: loss and KL in nats, and whether both put the same token first."""

    loss_N: NDArray[np.float64]
    kl_N: NDArray[np.float64]
    is_same_N: NDArray[np.bool_]


def rounding_receipts(
    artifact: Artifact,
    dense: Supernet,
    tokens_BT: torch.Tensor,
    tokenizer: Tokenizer,
    text_name: str,
    progress: Progress = silent,
) -> tuple[Receipt, ...]:
    """A receipt of 2, 3 and 4 planes and of all that are stored, on held-out windows `[B, T]`.

    KL is of the dense fp32 model to what the engine computes. `VerificationError` where a logit is
    not finite.
    """
    tokens_BT = tokens_BT[:WINDOWS]
    last_BTD = run_blocks(dense, tokens_BT, BATCH_SIZE)
    num_bytes = sum(len(tokenizer.decode(window[1:]).encode()) for window in tokens_BT.tolist())
    addresses = [*(f"b{count}" for count in measured_counts(artifact.num_planes)[:-1]), ""]
    receipts = []
    for done, address in enumerate(addresses):
        progress("receipts", done, len(addresses))
        subnet = artifact.subnet(address)
        with Engine(artifact, subnet) as engine:
            parts = [
                _compared(engine, dense, tokens_BT[row].numpy(), last_BTD[row], address)
                for row in range(len(tokens_BT))
            ]
            canary = _canary(TextEngine(engine, tokenizer))
        found = _Compared(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        cost = subnet_memory(subnet, WorkingSet(context=tokens_BT.shape[1]))
        median, p99 = np.percentile(found.kl_N, [50, 99])
        receipts.append(
            Receipt(
                address=address or "full",
                weight_bytes=cost.weight_bytes,
                memory_bytes=cost.total_bytes,
                effective_bits=_digits(subnet.effective_bits),
                bits_per_byte=_digits(found.loss_N.sum() / np.log(2) / max(num_bytes, 1)),
                perplexity=_digits(np.exp(min(found.loss_N.mean(), 700.0))),
                kl_nats=_digits(found.kl_N.mean()),
                kl_median_nats=_digits(median),
                kl_p99_nats=_digits(p99),
                kl_max_nats=_digits(found.kl_N.max()),
                top1_agreement=_digits(found.is_same_N.mean()),
                canary=canary,
                conditions=Conditions(
                    text=text_name,
                    tokens=len(found.loss_N),
                    context=int(tokens_BT.shape[1]),
                    machine=f"{platform.system()} {platform.machine()}",
                ),
            )
        )
    progress("receipts", len(addresses), len(addresses))
    return tuple(receipts)


def measured_counts(planes: int) -> tuple[int, ...]:
    """The plane counts that receipts and block errors are of, where `planes` are stored."""
    return (*(count for count in COUNTS if count < planes), planes)


class QualityBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How far all planes together may be from the dense model; None: no matter how far.

    `max_kl`: nats per token. `max_block_error`: the error of any block's output, mean square
    relative to what the dense block adds. A build that is further away keeps its work, so that one
    with larger bounds finishes at once.
    """

    max_kl: float | None = None
    max_block_error: float | None = None

    def check_blocks(self, errors: BlockErrors) -> None:
        """`QualityFloorError`, naming the worst block, where its error is beyond the bound."""
        worst = max(errors, key=lambda block: max(errors[block].items())[1])
        planes, error = max(errors[worst].items())
        if self.max_block_error is not None and error > self.max_block_error:
            raise QualityFloorError(
                f"The output of block {worst} is off by {error:g} of what it adds with all "
                f"{planes} planes and {self.max_block_error:g} was allowed. What was built is "
                "kept: the same command with a larger --max-block-error goes on; more --planes "
                "or another --rounding come closer."
            )

    def check_receipts(self, receipts: Sequence[Receipt]) -> None:
        """`QualityFloorError` where the full model is further than `max_kl` from the dense one."""
        full = receipts[-1]
        if self.max_kl is not None and full.kl_nats is not None and full.kl_nats > self.max_kl:
            raise QualityFloorError(
                f"All planes together are {full.kl_nats:g} nats per token from the dense model "
                f"and {self.max_kl:g} were allowed. What was built is kept: the same command with "
                "a larger --max-kl finishes it; more --planes or another --rounding come closer."
            )


def _compared(
    engine: Engine,
    dense: Supernet,
    tokens_T: NDArray[np.int64],
    last_TD: torch.Tensor,
    address: str,
) -> _Compared:
    """The engine beside the dense model at every token of a window but the last."""
    inputs_N = tokens_T[:-1].astype(np.int32)
    chunk = Chunk(inputs_N, engine.new_cache(len(inputs_N)), logits="all")
    (found_NV,) = engine.forward_chunk([chunk])
    if not np.isfinite(found_NV).all():
        raise VerificationError(
            f"The engine gave logits that are not finite at {address or 'all planes'}; the "
            "checkpoint's weights overflow when rounded."
        )
    with torch.no_grad():
        expected_NV = dense.logits(last_TD[None, :-1])[0].numpy()
    return _Compared(
        token_nats(found_NV, tokens_T[1:]),
        kl_nats(expected_NV, found_NV),
        expected_NV.argmax(axis=1) == found_NV.argmax(axis=1),
    )


def _canary(engine: TextEngine) -> str:
    """What the subnet writes, greedily; as much as the context holds."""
    prompt = engine.tokenizer.encode(CANARY)
    room = engine.engine.max_context - len(prompt)
    if room < 1:
        return ""
    options = SamplingOptions(max_tokens=min(_CANARY_TOKENS, room))
    return engine.generate(prompt, options).text


def _digits(value: float) -> float:
    """Six digits: the same on every machine of one kernel path, and all that is meant."""
    return float(f"{value:.6g}")
