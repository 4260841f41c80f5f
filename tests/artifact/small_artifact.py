"""A small random model with odd sizes everywhere, and how it becomes an artifact."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np

from pliant.adapters import factor_shapes, router_shapes
from pliant.artifact import ArtifactWriter, Findings, SourceRecord, SpecialTokens
from pliant.artifact.tensors import matrix_shapes, vector_sizes
from pliant.bits import EncodedMatrix, codecs
from pliant.shape import DepthPath, WidthOrders
from pliant.shape.depth import DepthChoice
from pliant.spec import ModelSpec

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97,
    "hidden_size": 40, "intermediate_size": 100, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
}  # fmt: skip


def small_spec(**changes):
    """Odd sizes everywhere, all kinds of vectors."""
    numbers = {
        "architecture": "llama", "vocab_size": 97, "hidden_size": 40, "num_blocks": 3,
        "num_heads": 4, "num_groups": 2, "head_dim": 6, "ffn_size": 100, "max_context": 64,
        "qkv_bias": True, "qk_norm": True, "post_norms": True, "attention_scale": 0.4,
        "tied_embeddings": False,
    }  # fmt: skip
    return ModelSpec(**(numbers | changes))


def random_weights(spec):
    """Every tensor of a model in stored order, `(name, array)`; the same on every call."""
    for index, (name, shape) in enumerate(matrix_shapes(spec).items()):
        yield name, np.random.default_rng(index).normal(0, 0.02, shape).astype(np.float32)
    for index, (name, size) in enumerate(vector_sizes(spec).items()):
        yield name, np.random.default_rng(1000 + index).normal(1, 0.1, size).astype(np.float32)


def some_findings(spec, **changes):
    """Findings with every kind of entry that needs the spec."""
    keep = tuple(range(spec.num_blocks))
    choices = tuple(DepthChoice(keep[:n], 2.0 + n) for n in range(spec.num_blocks, 0, -1))
    values = {
        "source": SourceRecord("tiny", "0" * 64),
        "tokens": SpecialTokens(bos=1, eos=(2, 3)),
        "depth_paths": {"amoeba": DepthPath("amoeba", choices, 3)},
        "default_depth_method": "amoeba",
        "tokenizer_files": ("tokenizer.json",),
        "orders": WidthOrders.identity(spec),
    }
    return Findings(**(values | changes))


@functools.cache
def encoded_tensors(spec, planes, codec_name="uniform"):
    """Every tensor as it is stored, `(name, EncodedMatrix or vector)`."""
    codec = codecs[codec_name].with_planes(planes)
    weights = random_weights(spec)
    return [(name, codec.encode(w, name) if w.ndim == 2 else w) for name, w in weights]


def write_all(writer, files=None):
    """Every tensor that is not done yet, and small files; `files` go before the usual ones."""
    for name, tensor in encoded_tensors(writer.spec, writer.codec.planes, writer.codec.name):
        if writer.is_done(name):
            continue
        if isinstance(tensor, EncodedMatrix):
            few = tensor.planes[: writer.codec.planes_of(name)]
            writer.write_matrix(name, dataclasses.replace(tensor, planes=few))
        else:
            writer.write_vector(name, tensor)
    usual = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}"}
    for name, content in {**usual, **(files or {})}.items():
        writer.write_file(name, content)


def random_adapters(spec, adapters):
    """Every tensor of adapters in stored order by name; the same on every call."""
    draw = np.random.default_rng(0)
    shapes = {**router_shapes(spec, adapters), **factor_shapes(spec, adapters)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_adapters(writer):
    """Every tensor of the adapters that is not done yet."""
    for name, tensor in random_adapters(writer.spec, writer.adapters).items():
        if not writer.is_done(name):
            writer.write_adapter(name, tensor)


def build(path, spec=None, planes=8, findings=None, files=None, **arguments):
    """A finished artifact at `path`."""
    spec = spec or small_spec()
    with ArtifactWriter(path, spec, planes=planes, **arguments) as writer:
        write_all(writer, files)
        if writer.adapters is not None:
            write_adapters(writer)
        return writer.finish(findings or some_findings(spec))
