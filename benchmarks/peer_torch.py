"""torch as a peer: the models of `transformers` with random weights, told by JSON lines.

Run by `vs_peers.py` in an interpreter that has torch and transformers. The loop is that of
`generate` without its bookkeeping: one forward call for the prompt that computes the logits of its
last token only, then one for each token, with a growing cache.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

loaded: dict[str, Any] = {}


def load(name: str, config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Make a model of a config with random weights of a type."""
    kind = getattr(transformers, config["architectures"][0])
    made = transformers.AutoConfig.for_model(**config)
    made.dtype = getattr(torch, dtype)
    with torch.device("meta"):
        model = kind(made)
    # Materialized without the slow initialization; rotary tables are made anew below.
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu")
    model.tie_weights()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.uniform_(-0.03, 0.03)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=made)
    loaded[name] = model.eval()
    weights = {weight.data_ptr(): weight for weight in model.parameters()}
    embedding = model.get_input_embeddings().weight
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if not config["tie_word_embeddings"]:
        # Of an untied embedding a token reads one row.
        num_bytes -= (len(embedding) - 1) * embedding[0].numel() * embedding.element_size()
    return {"weight_bytes": num_bytes}


def run(name: str, threads: int, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
    """Time one run of a loaded model: seconds to the first token, and of those after it."""
    torch.set_num_threads(threads)
    model = loaded[name]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=draw)
    with torch.inference_mode():
        start = time.perf_counter()
        cache, tokens = _step(model, tokens, None)
        first = time.perf_counter()
        for _ in range(decode_tokens):
            cache, tokens = _step(model, tokens, cache)
        end = time.perf_counter()
    return {"first_seconds": first - start, "decode_seconds": end - first}


def _step(model: Any, tokens: torch.Tensor, cache: Any) -> tuple[Any, torch.Tensor]:
    """The cache behind `tokens`, and the likeliest token after them."""
    found = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return found.past_key_values, found.logits[:, -1].argmax(-1, keepdim=True)


def close() -> dict[str, Any]:
    """Free every loaded model."""
    loaded.clear()
    return {}


def info() -> dict[str, Any]:
    """Versions."""
    return {"torch": str(torch.__version__), "transformers": transformers.__version__}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "load": load, "run": run, "close": close, "info": info,
}  # fmt: skip


def main() -> None:
    """Answer each line of stdin, a JSON object with an action, by a line on stdout."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = ACTIONS[request.pop("action")](**request)
        except Exception as error:  # the parent decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
