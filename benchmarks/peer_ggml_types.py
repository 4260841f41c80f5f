"""The block types of llama.cpp as peers: weights as its own quantizer leaves them.

Run by `bits.py` in an interpreter that has `llama-cpp-python` and `gguf`; it imports nothing of
pliant. Matrices come in an `.npz` beside the mean squares of their inputs, which is what an
importance matrix of llama.cpp holds; quantized by `ggml_quantize_chunk`, the function that
`llama_model_quantize` calls, and dequantized by gguf.
Shape suffixes: O rows, I columns, N blocks, C columns of a block.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from peer_llama_cpp import chosen_types, quantization, start

#: Matrices of a block by their names in GGUF.
NAMES = {
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
#: Types that gguf writes.
_FLOATS = ("F32", "F16", "BF16")
#: The very file that llama.cpp has loaded: a second copy would have no tables of its own.
_library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so.0"))
_library.ggml_quantize_chunk.restype = ctypes.c_size_t
_library.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
    ctypes.c_int64, ctypes.c_void_p,
]  # fmt: skip


def quantize_all(source: str, target: str, kinds: dict[str, str]) -> dict[str, Any]:
    """Quantize and dequantize `weight:NAME` of `source` as `kinds[NAME]` says; bits a weight.

    `target` gets the fp32 weights by name. `importance:NAME` are the mean squares of the inputs.
    """
    found: dict[str, Any] = {}
    num_bytes = count = 0
    with np.load(source) as arrays:
        for name, kind in kinds.items():
            weight_OI = np.ascontiguousarray(arrays[f"weight:{name}"], np.float32)
            importance_I = arrays[f"importance:{name}"].astype(np.float32)
            found[name], size = quantize(weight_OI, importance_I, quantization(kind))
            num_bytes += size
            count += weight_OI.size
    np.savez(target, **found)
    return {"bits": 8 * num_bytes / count}


def quantize(
    weight_OI: np.ndarray[Any, Any], importance_I: np.ndarray[Any, Any], kind: GGMLQuantizationType
) -> tuple[np.ndarray[Any, Any], int]:
    """The weights that blocks of this type stand for, and the bytes of the blocks.

    A block lies along the flattened matrix, so that rows of 128 columns make blocks of 256 too;
    where rows divide into blocks, that is what llama.cpp stores.
    """
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if weight_OI.size % block:
        raise ValueError(f"{weight_OI.shape} weights do not divide into blocks of {block}")
    if kind.name in _FLOATS:
        stored = gguf.quants.quantize(weight_OI, kind)
        return gguf.quants.dequantize(stored, kind).astype(np.float32), stored.nbytes
    weight_NC = weight_OI.reshape(-1, block)
    importance_NC = np.broadcast_to(importance_I, weight_OI.shape).reshape(-1, block)
    stored_NB = np.zeros((len(weight_NC), block_bytes), np.uint8)
    for number, importance_C in enumerate(np.ascontiguousarray(importance_NC)):
        written = _library.ggml_quantize_chunk(
            int(kind), weight_NC[number].ctypes.data, stored_NB[number].ctypes.data, 0, 1, block,
            importance_C.ctypes.data,
        )  # fmt: skip
        assert written == block_bytes
    found_NC = gguf.quants.dequantize(stored_NB, kind)
    return found_NC.reshape(weight_OI.shape).astype(np.float32), stored_NB.nbytes


def file_types(config: dict[str, Any], file_type: str) -> dict[str, Any]:
    """What `llama-quantize` would store each matrix of all blocks as, its fallbacks included."""
    with tempfile.TemporaryDirectory() as folder:
        types = chosen_types(config, file_type, Path(folder))
    kinds = {}
    for name, kind in types.items():
        parts = name.split(".")
        if parts[0] == "blk" and parts[2] in NAMES:
            kinds[f"blocks.{parts[1]}.{NAMES[parts[2]]}"] = kind
    return {"kinds": kinds}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "quantize": quantize_all, "file_types": file_types,
}  # fmt: skip


def main() -> None:
    """Answer each line of stdin, a JSON object with an action, by a line on stdout."""
    start()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = ACTIONS[request.pop("action")](**request)
        except Exception as error:  # the parent decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
