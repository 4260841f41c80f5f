"""All that reads or runs a part of an artifact that opens, each as a step that may be refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing

import numpy as np

from pliant.artifact import Artifact
from pliant.recipes.study import kept_studies
from pliant.runtime.tokenizer import Tokenizer

#: Cuts by address, of halves and ranked widths too, and a saved one.
ADDRESSES = ("", "w0.5-b3", "d1-w0.5-b2-k2", "h3-g0.5-k4", "small")
#: Behind a unit of a coded cache without a window, and the next token.
TOKENS = 70
CONVERSATION = [{"role": "user", "content": "ab"}]


def read_texts(artifact: Artifact) -> None:
    """Load the tokenizer and read, write and render with it."""
    tokenizer = Tokenizer.load(artifact.path, artifact.manifest.files)
    ids = tokenizer.encode("a ab <s> é")
    tokenizer.decode(ids)
    writer = tokenizer.decoder()
    for token in [*ids, tokenizer.vocab_size + 5]:
        writer.push(token)
    writer.finish()
    tokenizer.apply_chat_template(CONVERSATION)


def read_studies(artifact: Artifact) -> None:
    """Read what searches measured; damaged ones become notes."""
    kept_studies(artifact)


def read_receipts(artifact: Artifact) -> None:
    """What lists and searches look at without reading weights."""
    assert artifact.num_bytes > 0
    for address in ADDRESSES:
        subnet = artifact.subnet(address)
        assert subnet.weight_bytes > 0
        artifact.gates(subnet.shape)


def check_golden_files(artifact: Artifact) -> None:
    """What `pliant verify` computes: golden logits, golden texts."""
    from pliant.evaluate import check_golden_texts, read_golden_texts, verify_golden
    from pliant.runtime.engine import Engine
    from pliant.runtime.kernel_path import kernel_path

    def open_model(address: str, activations: str) -> closing[Engine]:
        return closing(Engine(artifact, artifact.subnet(address), 1, activations))

    texts = read_golden_texts(artifact)
    verify_golden(artifact.path / "golden.json", open_model, kernel_path())
    if texts is not None:
        with closing(Engine(artifact, artifact.subnet(), 1, "float32", "float32")) as exact:
            tokenizer = Tokenizer.load(artifact.path, artifact.manifest.files)
            check_golden_texts(exact, tokenizer, texts, artifact.num_planes)


def run(artifact: Artifact, address: str, bits: int) -> None:
    """A cut with a cache of `bits` bits: prompt, cut back, another subnet, likeliest tokens."""
    from pliant.runtime.chunk import Chunk
    from pliant.runtime.engine import Engine

    subnet = artifact.subnet(address)
    if bits < 16:
        subnet = subnet.with_cache(bits, 0)
    with closing(Engine(artifact, subnet, threads=1)) as engine:
        cache = engine.new_cache(TOKENS + 4)
        tokens = np.arange(TOKENS, dtype=np.int32) % engine.vocab_size
        engine.forward_chunk([Chunk(tokens, cache)])
        copy = cache.clone()
        cache.truncate(TOKENS - 3)
        held = engine.cache_format
        engine.switch(artifact.subnet("d1-w0.5-b1").with_cache(held.bits, held.window))
        # Logits that are not numbers are refused.
        chosen = engine.greedy([Chunk(tokens[:2], cache), Chunk(tokens[:1], copy)])
        engine.continue_texts([cache, copy], [int(one[-1]) for one in chosen], 2)


def export(artifact: Artifact) -> None:
    """Both targets, read back by the importer."""
    from pliant.export import export_gguf, export_hf, plan_gguf, plan_hf
    from pliant.recipes.imports import gguf_folder

    place = artifact.path.with_suffix(".out")
    try:
        place.mkdir()
        export_hf(plan_hf(artifact, "w0.5-b2"), "w0.5-b2", place / "hf")
        export_gguf(plan_gguf(artifact, "b2", "F32"), "b2", place / "x.gguf")
        gguf_folder(place / "x.gguf", place / "back")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def readings() -> dict[str, Callable[[Artifact], None]]:
    """Steps that need no engine."""
    return {"texts": read_texts, "studies": read_studies, "receipts": read_receipts}


def runs(number: int) -> dict[str, Callable[[Artifact], None]]:
    """Steps of mutation `number` that run weights."""
    steps = {}
    for place, address in enumerate(ADDRESSES):
        bits = (16, 4, 3, 2, 8)[(number + place) % 5]
        steps[f"{address or 'full'} k{bits}"] = lambda artifact, address=address, bits=bits: run(
            artifact, address, bits
        )
    steps["golden"] = check_golden_files
    if number // len(ADDRESSES) % 2 == 0:
        steps["export"] = export
    return steps
