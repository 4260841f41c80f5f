"""Measure subnets of an artifact with the engine: loss on a text, speed, a receipt."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from pliant.artifact import Artifact
from pliant.costs import WorkingSet, subnet_memory
from pliant.evaluate import TextLoss, Workload, evaluate_text, measure_speed
from pliant.receipt import Conditions, Receipt
from pliant.runtime.kernel_path import kernel_warnings
from pliant.runtime.text_engine import Pliant
from pliant.subnet import Subnet


def largest_member_bytes(artifact: Artifact) -> int:
    """Bytes of the full subnet at all planes as a model of its own: weights, config, tokenizer."""
    files = artifact.manifest.files
    small = sum(files[name].size for name in ("config.json", *artifact.manifest.tokenizer_files))
    return artifact.subnet().weight_bytes + small


def excerpt(documents: Sequence[str], num_bytes: int) -> list[str]:
    """The first documents, the last of them cut, so that together they have `num_bytes` at most."""
    kept: list[str] = []
    for document in documents:
        if num_bytes <= 0:
            break
        raw = document.encode()[:num_bytes]
        num_bytes -= len(raw)
        # A character cut in two at the end is dropped; what is left is valid text.
        kept.append(raw.decode(errors="ignore"))
    return [document for document in kept if document]


def text_loss(
    model: Pliant, subnet: Subnet, documents: Sequence[str], threads: int | None = None
) -> TextLoss:
    """The loss of one subnet on `documents`, measured with the engine."""
    with model.engine(subnet, threads=threads) as engine:
        return evaluate_text(engine.engine, engine.tokenizer, documents)


def measure(
    model: Pliant,
    address: str,
    documents: Sequence[str],
    *,
    text_name: str,
    context: int,
    threads: int | None = None,
) -> Receipt:
    """Quality on `documents`, bytes at `context` cached tokens, and speed of one subnet."""
    subnet = model.subnet(address)
    rank = model.artifact.adapter_rank(subnet.shape)
    cost = subnet_memory(subnet, WorkingSet(context=context), rank)
    with model.engine(subnet, threads=threads) as engine:
        loss = evaluate_text(engine.engine, engine.tokenizer, documents)
        used, kernels = engine.engine.threads, engine.engine.kernels
        # A prompt and a decoded stretch that every context holds.
        tokens = min(64, subnet.spec.max_context // 2)
        speed = measure_speed(
            engine.engine,
            subnet,
            Workload(prompt_tokens=tokens, decode_tokens=tokens),
            conditions="1 thread" if used == 1 else f"{used} threads",
            rank=rank,
        )
    return Receipt(
        address=address or "full",
        weight_bytes=cost.weight_bytes,
        memory_bytes=cost.total_bytes,
        bits_per_byte=loss.bits_per_byte,
        perplexity=loss.perplexity,
        speed=speed.decode,
        conditions=Conditions(
            text=text_name,
            tokens=loss.tokens,
            context=context,
            threads=used,
            kernels="; ".join((kernels, *kernel_warnings())),
            machine=f"{platform.system()} {platform.machine()}",
        ),
    )
