"""Each architecture and feature, one row each: our logits are those of `transformers`.

Tiny random models go through `save_pretrained` and `Checkpoint`, at odd sizes: head sizes that are
not hidden / heads, one KV group, a vocabulary of 97, windows shorter than the sequence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pliant.models import Checkpoint, KeyValueCache, Supernet

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
TOKENS = 41

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 5e5,
}
GEMMA = {**SMALL, "head_dim": 20, "query_pre_attn_scalar": 24, "sliding_window": 7}

#: name: (config class, its fields)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SMALL),
    "llama-tied": ("LlamaConfig", {**SMALL, "tie_word_embeddings": True}),
    "llama-one-group-biases": (
        "LlamaConfig",
        {**SMALL, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-no-sharing": ("LlamaConfig", {**SMALL, "num_key_value_heads": 4}),
    "llama-head-dim": ("LlamaConfig", {**SMALL, "head_dim": 18, "hidden_act": "gelu"}),
    "llama-3": ("LlamaConfig", {**SMALL, "rope_parameters": LLAMA3}),
    "llama-linear": (
        "LlamaConfig",
        {**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e3}},
    ),
    "llama-dynamic": (
        "LlamaConfig",
        {**SMALL, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama-yarn": ("LlamaConfig", {**SMALL, "rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "llama-yarn-mscale": (
        "LlamaConfig",
        {**SMALL, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3,
                                      "truncate": False, "rope_theta": 1e4}},
    ),
    "mistral-window": ("MistralConfig", {**SMALL, "head_dim": 10, "sliding_window": 5}),
    "mistral-full": ("MistralConfig", {**SMALL, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {**SMALL, "tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2Config",
        {**SMALL, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**SMALL, "head_dim": 22, "num_key_value_heads": 1}),
    "qwen3-bias-yarn": (
        "Qwen3Config",
        {**SMALL, "head_dim": 8, "attention_bias": True,
         "rope_parameters": {**YARN, "rope_theta": 1e6}},
    ),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma2-strong-caps": (
        "Gemma2Config",
        {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
         "num_key_value_heads": 1},
    ),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7}),
    "gemma3-linear": (
        "Gemma3TextConfig",
        {**GEMMA, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
         "final_logit_softcapping": 5.0,
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    ),
    "smollm3": ("SmolLM3Config", {**SMALL, "num_hidden_layers": 5}),
    "smollm3-window": (
        "SmolLM3Config",
        {**SMALL, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 6},
    ),
}  # fmt: skip


def random_model(row: str, folder: Path, shard_size: str = "5GB") -> Any:
    """A `transformers` model with every weight random, biases and norms too, saved in `folder`."""
    torch.set_num_threads(1)
    class_name, fields = ROWS[row]
    torch.manual_seed(len(row))
    config = getattr(transformers, class_name)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model.eval()


def tokens(count: int = TOKENS) -> torch.Tensor:
    return torch.randint(0, 97, (2, count), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_prefill_and_cached_decode_equal_transformers(row: str, tmp_path: Path) -> None:
    model = random_model(row, tmp_path)
    supernet = Supernet.from_checkpoint(Checkpoint.open(tmp_path))
    expected = model(tokens()).logits
    assert expected.std() > 0.1, "the model must say something for its logits to be compared"
    torch.testing.assert_close(supernet(tokens()), expected, atol=TOLERANCE, rtol=0)

    cache, theirs = KeyValueCache(), None
    for start, end in ((0, 6), (6, 7), (7, 20), (20, 21), (21, TOKENS)):
        chunk = tokens()[:, start:end]
        ours = supernet(chunk, cache=cache)
        output = model(chunk, past_key_values=theirs, use_cache=True)
        theirs = output.past_key_values
        torch.testing.assert_close(ours, output.logits, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(ours, expected[:, start:end], atol=TOLERANCE, rtol=0)
    assert cache.length() == TOKENS


@pytest.mark.parametrize("row", ["llama-yarn", "llama-3", "llama-linear", "gemma3-linear"])
@torch.no_grad()
def test_beyond_the_stated_context(row: str, tmp_path: Path) -> None:
    model = random_model(row, tmp_path)
    supernet = Supernet.from_checkpoint(Checkpoint.open(tmp_path))
    long = tokens(150)
    torch.testing.assert_close(supernet(long), model(long).logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_dynamic_rope_stretches_with_the_sequence(tmp_path: Path) -> None:
    model = random_model("llama-dynamic", tmp_path)
    supernet = Supernet.from_checkpoint(Checkpoint.open(tmp_path))
    for count in (64, 65, 100, 150):  # growing, because transformers keeps the longest it has seen
        long = tokens(count)
        torch.testing.assert_close(supernet(long), model(long).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("row", ["llama", "qwen2", "gemma3"])
@torch.no_grad()
def test_sharded_checkpoint(row: str, tmp_path: Path) -> None:
    model = random_model(row, tmp_path, shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    supernet = Supernet.from_checkpoint(Checkpoint.open(tmp_path))
    torch.testing.assert_close(supernet(tokens()), model(tokens()).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("row", ROWS)
def test_weights_go_back_under_their_names(row: str, tmp_path: Path) -> None:
    model = random_model(row, tmp_path)
    supernet = Supernet.from_checkpoint(Checkpoint.open(tmp_path))
    exported = supernet.to_checkpoint_tensors()
    expected = dict(model.named_parameters())
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in expected.items())


def renamed(name: str, generation: str) -> str:
    """A tensor of a multimodal checkpoint as one of two generations of the library calls it."""
    part = name.removeprefix("model.")
    if generation == "new":
        if part.startswith("language_model.model."):
            part = part.replace("language_model.model.", "language_model.", 1)
        return part if part.startswith("lm_head") else f"model.{part}"
    if part.startswith("language_model.") and not part.startswith("language_model.model."):
        return part.replace("language_model.", "language_model.model.", 1)
    return part


@pytest.mark.parametrize("generation", ["old", "new"])
@torch.no_grad()
def test_text_part_of_a_multimodal_gemma3(tmp_path: Path, generation: str) -> None:
    text = {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "patch_size": 14,
              "num_attention_heads": 2, "image_size": 28}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    )
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored = {renamed(name, generation): tensor for name, tensor in stored.items()}
    save_file(stored, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert json.loads((tmp_path / "config.json").read_bytes())["model_type"] == "gemma3"
    supernet = Supernet.from_checkpoint(checkpoint)
    expected = model.eval()(input_ids=tokens()).logits
    torch.testing.assert_close(supernet(tokens()), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_bfloat16_weights_are_read_exactly(tmp_path: Path) -> None:
    model = random_model("qwen3", tmp_path / "wide")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    supernet = Supernet.from_checkpoint(Checkpoint.open(tmp_path / "half"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "half", dtype=torch.float32, attn_implementation="eager"
    )
    expected = model(tokens()).logits
    torch.testing.assert_close(supernet(tokens()), expected, atol=TOLERANCE, rtol=0)
