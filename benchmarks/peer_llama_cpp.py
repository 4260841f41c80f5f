"""llama.cpp as a peer: writes GGUF files of random weights and times them, told by JSON lines.

Run by `vs_peers.py` in an interpreter that has `llama-cpp-python` and `gguf`; it imports nothing of
pliant. The types of all tensors are those that llama.cpp's own quantizer chooses for a file type,
its fallbacks for unfit sizes included: it is asked by a dry run over a file that has no data. The
payload is random with valid scales.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

Config = dict[str, Any]
#: fp16 numbers in a block of each type: offset and value, such that weights are about 0.02.
SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q8_0": ((0, 2.7e-4),), "Q4_0": ((0, 4e-3),), "Q5_0": ((0, 2e-3),), "IQ4_NL": ((0, 3e-4),),
    "Q4_1": ((0, 4e-3), (2, -0.03)), "Q5_1": ((0, 2e-3), (2, -0.03)),
    "Q2_K": ((80, 2e-3), (82, 2e-3)), "Q3_K": ((108, 3e-4),), "Q4_K": ((0, 1e-4), (2, 8e-4)),
    "Q5_K": ((0, 6e-5), (2, 8e-4)), "Q6_K": ((208, 1.5e-5),), "TQ1_0": ((52, 0.02),),
    "TQ2_0": ((64, 0.02),), "IQ4_XS": ((0, 1e-5),), "IQ2_XXS": ((0, 1e-3),),
}  # fmt: skip
_LOGGED_TYPE = re.compile(
    r"^\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[[^\]]*\], type = +(?P<old>\w+), size = .*?"
    r"(?:\((?P<new>\w+)\))?$",
    re.MULTILINE,
)
_log: list[str] = []


def _keep_log(level: int, text: bytes, data: Any) -> None:
    _log.append(text.decode(errors="replace"))


#: Kept here, because llama.cpp calls it for as long as it lives.
_LOG_CALLBACK = llama_cpp.llama_log_callback(_keep_log)


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes (rows, columns) of the tensors of a Llama or Qwen 2."""
    hidden, ffn, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    head = head_dim(config)
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden)}
    for block in range(config["num_hidden_layers"]):
        prefix = f"blk.{block}."
        shapes |= {
            prefix + "attn_norm.weight": (hidden,), prefix + "ffn_norm.weight": (hidden,),
            prefix + "attn_q.weight": (query, hidden), prefix + "attn_k.weight": (key, hidden),
            prefix + "attn_v.weight": (key, hidden),
            prefix + "attn_output.weight": (hidden, query),
            prefix + "ffn_gate.weight": (ffn, hidden), prefix + "ffn_up.weight": (ffn, hidden),
            prefix + "ffn_down.weight": (hidden, ffn),
        }  # fmt: skip
        if config["model_type"] == "qwen2":
            shapes |= {
                prefix + "attn_q.bias": (query,), prefix + "attn_k.bias": (key,),
                prefix + "attn_v.bias": (key,),
            }  # fmt: skip
    shapes["output_norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (vocab, hidden)
    return shapes


def head_dim(config: Config) -> int:
    """Entries of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def new_writer(path: Path, config: Config) -> GGUFWriter:
    """A GGUF file with the metadata of a config and no vocabulary but its size."""
    writer = GGUFWriter(path, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    return writer


def chosen_types(config: Config, file_type: str, folder: Path) -> dict[str, str]:
    """The type that llama.cpp's quantizer gives each tensor."""
    hollow = folder / "hollow.gguf"
    writer = new_writer(hollow, config)
    size = 0
    for name, shape in tensor_shapes(config).items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, num_bytes)
        size += -(-num_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with hollow.open("r+b") as file:
        # A hole reads as zeros and takes no space.
        file.truncate(-(-hollow.stat().st_size // 32) * 32 + size)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    params.dry_run = True
    _log.clear()
    code = llama_cpp.llama_model_quantize(
        str(hollow).encode(), str(folder / "unused.gguf").encode(), ctypes.byref(params)
    )
    hollow.unlink()
    text = "".join(_log)
    if code != 0:
        raise RuntimeError(f"llama.cpp cannot quantize this shape to {file_type}: {text[-500:]}")
    types = {found["name"]: (found["new"] or found["old"]) for found in _LOGGED_TYPE.finditer(text)}
    missing = set(tensor_shapes(config)) - set(types)
    if missing:
        raise RuntimeError(f"The dry run of llama.cpp named no type for {sorted(missing)[:3]}.")
    return types


def quantization(name: str) -> GGMLQuantizationType:
    """The type of a name as llama.cpp prints it, such as q4_K."""
    return next(kind for kind in GGMLQuantizationType if kind.name.lower() == name.lower())


def write_random(path: Path, config: Config, file_type: str) -> None:
    """A GGUF file of a file type with random payload, written beside and renamed."""
    types = chosen_types(config, file_type, path.parent)
    partial = path.with_suffix(".partial")
    writer = new_writer(partial, config)
    writer.add_file_type(getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}"))
    draw = np.random.default_rng(0)
    pool = np.frombuffer(draw.bytes(2**24), np.uint8)
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            fill = np.zeros if name.endswith(".bias") else np.ones
            writer.add_tensor(name, fill(shape, np.float32))
            continue
        kind = quantization(types[name])
        if kind == GGMLQuantizationType.F16:
            values = draw.normal(0, 0.02, shape).astype(np.float16)
            writer.add_tensor(name, values)
            continue
        block, block_bytes = GGML_QUANT_SIZES[kind]
        count = shape[0] * shape[1] // block
        blocks = np.resize(pool, (count, block_bytes))
        for offset, value in SCALES[kind.name]:
            blocks[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def token_bytes(path: Path, config: Config) -> int:
    """Bytes of weights that a token reads: all, but of an untied embedding one row."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    if not config["tie_word_embeddings"]:
        sizes["token_embd.weight"] //= config["vocab_size"]
    return sum(sizes.values())


class Loaded:
    """A GGUF file in llama.cpp with a context for one sequence."""

    def __init__(self, path: str, context: int, repack: bool) -> None:
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}: {''.join(_log)[-500:]}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = -(-context // 256) * 256
        params.n_batch = params.n_ubatch = 512
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens.")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.num_tokens = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def run(self, threads: int, prompt_tokens: int, decode_tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and of the tokens after it."""
        llama_cpp.llama_set_n_threads(self.context, threads, threads)
        prompt = np.random.default_rng(0).integers(0, self.num_tokens, prompt_tokens, np.int32)
        start = time.perf_counter()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for begin in range(0, prompt_tokens, 512):
            token = self._step(prompt[begin : begin + 512])
        first = time.perf_counter()
        for _ in range(decode_tokens):
            token = self._step(np.array([token], np.int32))
        return first - start, time.perf_counter() - first

    def _step(self, tokens: np.ndarray[Any, np.dtype[np.int32]]) -> int:
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch = llama_cpp.llama_batch_get_one(pointer, len(tokens))
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError(f"llama.cpp refused a step: {''.join(_log)[-500:]}")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.num_tokens,)).argmax())

    def close(self) -> None:
        """Free context and model."""
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


loaded: dict[str, Loaded] = {}


def prepare(path: str, config: Config, file_type: str) -> dict[str, Any]:
    """Write the file if it is not there; the bytes a token reads."""
    target = Path(path)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_random(target, config, file_type)
    return {"weight_bytes": token_bytes(target, config)}


def load(name: str, path: str, context: int, repack: bool = True) -> dict[str, Any]:
    """Load a file under a name."""
    loaded[name] = Loaded(path, context, repack)
    return {}


def run(name: str, threads: int, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
    """Time one run of a loaded model."""
    first, decode = loaded[name].run(threads, prompt_tokens, decode_tokens)
    return {"first_seconds": first, "decode_seconds": decode}


def close() -> dict[str, Any]:
    """Free every loaded model."""
    while loaded:
        loaded.popitem()[1].close()
    return {}


def info() -> dict[str, Any]:
    """Versions and what llama.cpp says of its build."""
    system = llama_cpp.llama_print_system_info()
    return {
        "llama-cpp-python": llama_cpp.__version__,
        "gguf": getattr(gguf, "__version__", ""),
        "system": system.decode() if isinstance(system, bytes) else str(system),
    }


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": prepare, "load": load, "run": run, "close": close, "info": info,
}  # fmt: skip


def start() -> None:
    """Begin with llama.cpp, its log kept here."""
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def main() -> None:
    """Answer each line of stdin, a JSON object with an action, by a line on stdout."""
    start()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = ACTIONS[request.pop("action")](**request)
        except Exception as error:  # the parent decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        del _log[:-200]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
