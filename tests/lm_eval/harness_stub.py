"""As much of lm-eval as a model needs, so that ours is tested where lm-eval is not installed.

Behaviour is written from its documentation: splitting of context and continuation, rolling windows,
normalized options of generation. Where the real one is installed, tests use that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Instance:
    """A request: `args` are what the model's method is asked about."""

    def __init__(self, *args: Any) -> None:
        self.args = args


class CacheHook:
    """Takes answers and forgets them."""

    def add_partial(self, method: str, request: Any, answer: Any) -> None:
        """Nothing is stored."""


class TemplateLM:
    """The base of models that score tokens."""

    def __init__(self) -> None:
        self.cache_hook = CacheHook()

    def loglikelihood(self: Any, requests: Any, disable_tqdm: bool = False) -> Any:
        """Encode each pair, spaces between them on the side of the continuation, and score."""
        encoded = []
        for context, continuation in [request.args for request in requests]:
            if context == "":
                pair = [self.prefix_token_id], self.tok_encode(continuation, False)
            else:
                kept = context.rstrip()
                start = self.tok_encode(kept)
                whole = self.tok_encode(kept + context[len(kept) :] + continuation)
                pair = start, whole[len(start) :]
            encoded.append(((context, continuation), *pair))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)


def _windows(token_list: Any, prefix_token: int, max_seq_len: int, context_len: int) -> Any:
    assert context_len == 1
    whole = [prefix_token, *token_list]
    for begin in range(0, len(token_list), max_seq_len):
        end = min(begin + max_seq_len, len(token_list))
        first = max(0, end - max_seq_len)
        yield whole[first:end], token_list[begin:end]


def _disjoint(window: Any) -> Any:
    inputs, targets = window
    return inputs[: len(inputs) - len(targets) + 1], targets


def _normalized(gen_kwargs: dict[str, Any], default: int) -> dict[str, Any]:
    wanted = dict(gen_kwargs)
    until = wanted.get("until", [])
    wanted["until"] = until if isinstance(until, list) else [until]
    wanted["max_gen_toks"] = wanted.get("max_gen_toks", default)
    wanted.setdefault("do_sample", False)
    return wanted


def _ending(until: list[str], eos: str) -> list[str]:
    return [*until, eos]


def _cut(text: str, stop: list[str], think_end: None) -> str:
    for part in filter(None, stop):
        text = text.split(part)[0]
    return text


def modules(registry: dict[str, Any]) -> dict[str, ModuleType]:
    """The modules that `pliant.lm_eval` imports, by name; models are registered in `registry`."""

    def register_model(name: str) -> Callable[[Any], Any]:
        def register(model: Any) -> Any:
            registry[name] = model
            return model

        return register

    content: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": TemplateLM},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.models": {},
        "lm_eval.models.utils": {
            "handle_stop_sequences": _ending,
            "normalize_gen_kwargs": _normalized,
            "postprocess_generated_text": _cut,
        },
        "lm_eval.utils": {
            "get_rolling_token_windows": _windows,
            "make_disjoint_window": _disjoint,
        },
    }
    found = {}
    for name, values in content.items():
        module = ModuleType(name)
        module.__dict__.update(values, __spec__=sys.__spec__)
        found[name] = module
    return found
