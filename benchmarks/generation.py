"""How fast is the engine at batch 1, beside torch running the same weights?

`python benchmarks/generation.py` writes `benchmarks/results/generation.json`. Both sides run the
same random Llama of a true shape: ours from its bit-planes at several plane counts, torch through
`transformers`' `generate` with the dense weights in fp32 and bf16. Speed does not depend on the
values of weights. Samples are interleaved, so that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from pliant import _native
from pliant.bits.codec import EncodedMatrix
from pliant.bits.uniform import UniformCodec
from pliant.costs import decode_traffic
from pliant.measurement import Measurement
from pliant.models.names import checkpoint_names
from pliant.runtime import Chunk, Engine
from pliant.spec import ModelSpec
from pliant.spec.huggingface import read_spec
from pliant.subnet import Subnet

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "generation.json"

#: True shapes: stories260K and stories15M (llama2.c), and Qwen2.5-0.5B as a llama.
SHAPES: dict[str, dict[str, Any]] = {
    "260K": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 5,
             "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 172},
    "15M": {"vocab_size": 32_000, "hidden_size": 288, "num_hidden_layers": 6,
            "num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 768},
    "0.5B": {"vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864},
}  # fmt: skip


@dataclass(frozen=True)
class Length:
    """Tokens of a run: the prompt, and those generated after the first."""

    prompt: int
    decode: int


#: Seconds until the first token, and of the decoded ones after it.
Sample = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """One line of the table: `run` takes one sample."""

    model: str
    runner: str
    threads: int
    run: Callable[[Length], Sample]
    #: Bytes that one token in the middle of decoding reads; 0 where not counted.
    token_bytes: int


class EncodedModel:
    """The weights of a `transformers` model as bit-planes, in memory."""

    def __init__(self, spec: ModelSpec, weights: dict[str, torch.Tensor]) -> None:
        self.spec = spec
        self._matrices: dict[str, EncodedMatrix] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        for name, source in checkpoint_names(spec).items():
            weight = weights[source].float().numpy()
            if weight.ndim == 2:
                self._matrices[name] = UniformCodec().encode(weight, name)
            else:
                self._vectors[name] = weight

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        """All planes of a matrix."""
        return self._matrices[name].planes

    def scales(self, name: str) -> NDArray[np.uint16]:
        """fp16 bits of the scales of a matrix."""
        return self._matrices[name].scales

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm weight."""
        return self._vectors[name]


def main() -> None:
    options = _parser().parse_args()
    length = Length(options.prompt, options.decode)
    lines: list[dict[str, Any]] = []
    for name in options.models:
        cases = list(cases_of(name, options.planes, options.threads, length))
        lines += measure(cases, length, options.rounds)
    results = {
        "conditions": conditions(length),
        "table": table(lines, length),
        "measurements": msgspec.to_builtins(lines),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.output.write_bytes(content + b"\n")


def cases_of(name: str, planes: list[int], threads: list[int], length: Length) -> Iterator[Case]:
    """Every runner of one model."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SHAPES[name], max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=None
    )
    dense: Any = transformers.LlamaForCausalLM(config)
    spec = read_spec(config.to_dict())
    artifact = EncodedModel(spec, dict(dense.state_dict()))
    for count in threads:
        for kept in planes:
            subnet = Subnet.full(spec, kept)
            engine = Engine(artifact, subnet, threads=count)
            traffic = decode_traffic(subnet, length.prompt + length.decode // 2).total_bytes
            yield Case(name, f"pliant, {kept} planes", count, engine_run(engine), traffic)
        yield Case(name, "torch fp32", count, torch_run(dense, count), 0)
    half: Any = transformers.LlamaForCausalLM(config)
    half = half.to(torch.bfloat16)
    for count in threads:
        yield Case(name, "torch bf16", count, torch_run(half, count), 0)


def engine_run(engine: Engine) -> Callable[[Length], Sample]:
    """Greedy decoding by the engine."""

    def run(length: Length) -> Sample:
        prompt = np.arange(length.prompt, dtype=np.int32) % engine.vocab_size
        start = time.perf_counter()
        cache = engine.new_cache(length.prompt + length.decode)
        token = int(engine.forward_chunk([Chunk(prompt, cache)])[0].argmax())
        first = time.perf_counter()
        for _ in range(length.decode):
            chunk = Chunk(np.array([token], np.int32), cache)
            token = int(engine.forward_chunk([chunk])[0].argmax())
        return first - start, time.perf_counter() - first

    return run


def torch_run(model: Any, threads: int) -> Callable[[Length], Sample]:
    """Greedy decoding by `generate`; the time of one new token is taken from that of many."""

    def seconds(prompt: torch.Tensor, count: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                min_new_tokens=count, max_new_tokens=count, pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - start

    def run(length: Length) -> Sample:
        torch.set_num_threads(threads)
        prompt = (torch.arange(length.prompt) % model.config.vocab_size)[None]
        first = seconds(prompt, 1)
        return first, max(seconds(prompt, 1 + length.decode) - first, 1e-9)

    return run


def measure(cases: list[Case], length: Length, rounds: int) -> list[dict[str, Any]]:
    """One line per case, its samples taken in turn with the others'; the first round warms up."""
    samples: list[list[Sample]] = [[] for _ in cases]
    for number in range(rounds + 1):
        for case, taken in zip(cases, samples, strict=True):
            sample = case.run(length)
            taken += [sample] if number else []
    lines = []
    for case, taken in zip(cases, samples, strict=True):
        first, decode = np.array(taken).T
        under = f"{case.model}, {case.runner}, {case.threads} threads"
        prefill = Measurement.of((length.prompt / first).tolist(), "token/s", "prefill", under)
        decoding = Measurement.of((length.decode / decode).tolist(), "token/s", "decode", under)
        print(decoding, "|", prefill, flush=True)
        lines.append(
            {
                "model": case.model,
                "runner": case.runner,
                "threads": case.threads,
                "prefill": prefill,
                "decode": decoding,
                "token_bytes": case.token_bytes,
            }
        )
    return lines


def conditions(length: Length) -> dict[str, Any]:
    """What the numbers hold for."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "kernels": _native.kernels.best(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "prompt_tokens": length.prompt,
        "decode_tokens": length.decode,
        "load_average": round(busy, 2),
    }


def table(lines: list[dict[str, Any]], length: Length) -> dict[str, Any]:
    """Columns and rows for `benchmarks/tables.py`, with the ratio to the faster torch."""
    rows = []
    for line in lines:
        peers = [
            other["decode"].median
            for other in lines
            if other["runner"].startswith("torch")
            and (other["model"], other["threads"]) == (line["model"], line["threads"])
        ]
        decode, prefill = line["decode"], line["prefill"]
        rows.append(
            [
                line["model"],
                line["runner"],
                str(line["threads"]),
                f"{decode.median:.0f} [{decode.low:.0f}, {decode.high:.0f}]",
                f"{prefill.median:.0f} [{prefill.low:.0f}, {prefill.high:.0f}]",
                f"{decode.median / max(peers):.1f}",
            ]
        )
    known = conditions(length)
    caption = (
        f"Batch 1, a prompt of {length.prompt} tokens and {length.decode} more, token/s as median "
        f"[lowest, highest]; {known['machine']}, {known['kernels']}, torch {known['torch']}, "
        f"load average {known['load_average']}."
    )
    columns = ["model", "runner", "threads", "decode", "prefill", "decode ÷ best torch"]
    return {"columns": columns, "align": "llrrrr", "rows": rows, "caption": caption}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["260K", "15M"], choices=list(SHAPES))
    parser.add_argument("--planes", nargs="+", type=int, default=[8, 4, 2])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=64, help="tokens decoded after the first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
