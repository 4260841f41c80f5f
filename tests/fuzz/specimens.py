"""Small artifacts of every kind there is, with all files that something reads, to be damaged."""

from __future__ import annotations

import json
from pathlib import Path

from small_artifact import build, small_spec, some_findings

from pliant.adapters import AdapterSpec
from pliant.artifact import Artifact
from pliant.recipes.study import _fingerprint, _weight_files
from pliant.search import Study
from pliant.shape import DepthPath, WidthRanking
from pliant.shape.depth import DepthChoice

#: Odd sizes; a context beyond two units of a coded cache.
SIZES = {"num_blocks": 2, "vocab_size": 19, "hidden_size": 24, "ffn_size": 70, "max_context": 160}
#: What an export holds: no norms and biases that a Llama has not.
PLAIN = {"qkv_bias": False, "qk_norm": False, "post_norms": False, "attention_scale": 6**-0.5,
         "tied_embeddings": True}  # fmt: skip
#: Spec and arguments of each artifact. Three planes keep them small: each is hashed twice.
KINDS = {
    "plain": (PLAIN, {"planes": 3}),
    "adapters": ({}, {"planes": 3, "adapters": AdapterSpec(rank=9, experts=3, top_k=2)}),
    "planes of their own": (
        {},
        {"planes": 3, "matrix_planes": {"head": 2, "blocks.0.q": 1, "blocks.1.down": 2},
         "adapters": AdapterSpec(rank=2, experts=1, top_k=1, anchored=True)},
    ),
    "shift-add": (
        PLAIN,
        {"planes": 4, "codec": "shift-add", "matrix_planes": {"blocks.0.up": 1, "embedding": 3}},
    ),
}  # fmt: skip
_PIECES = ["<unk>", "<s>", "</s>", *(chr(ord("a") + place) for place in range(13)), "▁", "ab", "▁a"]


def specimen(path: Path, kind: str, with_engine: bool) -> Path:
    """A whole artifact of a kind; with golden files where an engine can make them."""
    spec_changes, arguments = KINDS[kind]
    spec = small_spec(**SIZES, **spec_changes)
    halves = ((0, 1, 2, 3), (0, 1, 3))
    path_of_halves = DepthPath("greedy", tuple(DepthChoice(keep, 2.0) for keep in halves), 3)
    findings = some_findings(
        spec,
        half_path=path_of_halves,
        width_ranking=WidthRanking((1, 0, 3, 2, 0, 1, 3, 2)),
        tokenizer_files=("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    )
    files = {
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(),
        "chat_template.jinja": b"{%for m in messages%}a{{ m.content }}{{ eos_token }}{%endfor%}",
        "generation_config.json": b'{"eos_token_id": [2, 3], "temperature": 0.5}',
    }
    artifact = build(path, spec, findings=findings, files=files, **arguments)
    if with_engine:
        artifact = artifact.amend(findings, _golden_files(artifact))
    cut = artifact.subnet("d1-w0.5-b2")
    artifact.save_subnet("small", cut.with_cache(3, 0))
    study = Study(text="0" * 16, weights=_fingerprint(*_shas(artifact))).with_loss(cut, 1.5)
    study = study.with_loss(artifact.subnet(), 1.0).with_seconds(cut, "here", 0.01)
    artifact.save_study("0" * 16, study.to_json())
    return artifact.path


def _shas(artifact: Artifact) -> list[str]:
    return [record.sha256 for record in _weight_files(artifact)]


def _tokenizer() -> bytes:
    """A merger of pieces with an unknown one, as of a Llama."""
    special = [
        {"id": index, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index, piece in enumerate(_PIECES[:3])
    ]  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": True, "ignore_merges": False,
                  "vocab": {piece: index for index, piece in enumerate(_PIECES)},
                  "merges": [["a", "b"], ["▁", "a"]]},
    }  # fmt: skip
    return json.dumps(content).encode()


def _tokenizer_config() -> bytes:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False, "special": True},
        "added_tokens_decoder": {"0": {"content": "<unk>", "special": True, "normalized": False}},
        "additional_special_tokens": ["</s>"], "extra_special_tokens": {"pad_token": "<unk>"},
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    }  # fmt: skip
    return json.dumps(config).encode()


def _golden_files(artifact: Artifact) -> dict[str, bytes]:
    """Golden logits of two cuts and golden texts, as a build records them."""
    from pliant.evaluate import golden_json, golden_texts_json, record_golden, record_golden_texts
    from pliant.runtime import Tokenizer
    from pliant.runtime.engine import Engine

    tokenizer = Tokenizer.load(artifact.path)
    records = []
    for address in ("", "d1-w0.5-b2"):
        engine = Engine(artifact, artifact.subnet(address), threads=1)
        records.append(record_golden(engine, address, engine.kernels))
        engine.close()
    exact = Engine(artifact, artifact.subnet(), 1, "float32", "float32")
    texts = record_golden_texts(exact, tokenizer, artifact.num_planes)
    exact.close()
    return {
        "golden.json": golden_json(records), "golden_texts.json": golden_texts_json(texts),
    }  # fmt: skip
