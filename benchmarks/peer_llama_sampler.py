"""llama.cpp's chain of samplers, timed on given logits and told by JSON lines.

Run by `sampling.py` in an interpreter that has `llama-cpp-python`; it imports nothing of pliant.
What `llama_sampler_sample` does first, putting a token of twelve bytes beside each logit, is not
counted.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np

import peer_llama_cpp
from sampling_cases import CASES, rows, seen_tokens

_TOKEN = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
_made: dict[tuple[int, str], Any] = {}


def chain_of(vocabulary: int, case: str) -> Any:
    """The chain of a case, in the order of llama.cpp's own programs."""
    options = CASES[case]
    parameters = llama_cpp.llama_sampler_chain_default_params()
    parameters.no_perf = True
    chain = llama_cpp.llama_sampler_chain_init(parameters)
    links = []
    if "repetition_penalty" in options:
        penalty = options["repetition_penalty"]
        links.append(
            llama_cpp.llama_sampler_init_penalties(vocabulary, options["seen"], penalty, 0.0, 0.0)
        )
    if "top_k" in options:
        links.append(llama_cpp.llama_sampler_init_top_k(options["top_k"]))
    if "top_p" in options:
        links.append(llama_cpp.llama_sampler_init_top_p(options["top_p"], 1))
    if "min_p" in options:
        links.append(llama_cpp.llama_sampler_init_min_p(options["min_p"], 1))
    if options["temperature"] == 0:
        links.append(llama_cpp.llama_sampler_init_greedy())
    else:
        links.append(llama_cpp.llama_sampler_init_temp(options["temperature"]))
        links.append(llama_cpp.llama_sampler_init_dist(1))
    for link in links:
        llama_cpp.llama_sampler_chain_add(chain, link)
    for token in seen_tokens(vocabulary, options.get("seen", 0)):
        llama_cpp.llama_sampler_accept(chain, token)
    return chain


def draws(vocabulary: int, kind: str, case: str, count: int) -> dict[str, Any]:
    """Seconds of some draws, and the tokens drawn."""
    if (vocabulary, case) not in _made:
        _made[vocabulary, case] = chain_of(vocabulary, case)
    chain, logits = _made[vocabulary, case], rows(vocabulary, kind)
    tokens = np.empty(vocabulary, _TOKEN)
    pointer = tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    seconds, drawn = [], []
    for i in range(count):
        tokens["id"], tokens["p"] = np.arange(vocabulary), 0
        tokens["logit"] = logits[i % len(logits)]
        candidates = llama_cpp.llama_token_data_array(
            data=pointer, size=vocabulary, selected=-1, sorted=False
        )
        start = time.perf_counter()
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(candidates))
        seconds.append(time.perf_counter() - start)
        drawn.append(int(candidates.data[candidates.selected].id))
    return {"seconds": seconds, "tokens": drawn}


if __name__ == "__main__":
    peer_llama_cpp.ACTIONS["draws"] = draws
    peer_llama_cpp.main()
