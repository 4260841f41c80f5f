"""The runners of `vs_peers.py`: our engine at some planes, llama.cpp's file types, torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from peer_process import PeerProcess
from pliant.costs import decode_traffic
from pliant.evaluate import Runner, Workload
from pliant.evaluate.speed import RunSample, time_run
from pliant.runtime.engine import Engine
from pliant.spec import ModelSpec
from pliant.subnet import Subnet
from random_models import CONFIGS, fingerprint, full_spec, random_artifact

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
#: Tokens decoded in one run: about two seconds of the slowest runner.
DECODE_TOKENS = {"tale-750k": 120, "15M": 256, "Qwen2.5-0.5B": 48}
#: Tokens of the prompt: TinyLlama has the matrices of Llama-1B, whose prefill speaks for both.
PROMPT_TOKENS = {"TinyLlama-1.1B": 128}
#: Without bf16 instructions a prompt takes torch a minute; its prefill is measured in fp32.
BF16_PROMPT = 16


@dataclass(frozen=True)
class Length:
    """Tokens of one run."""

    prompt: int
    decode: int


@dataclass(frozen=True, eq=False)
class Case:
    """One runner of a model with a number of threads; `sample` times one run of it."""

    runner: str
    threads: int
    length: Length
    spec: ModelSpec
    weight_bytes: int
    sample: Callable[[Length], RunSample]

    def run(self) -> RunSample:
        """One run of the length the case has."""
        return self.sample(self.length)

    def with_decode(self, tokens: int) -> Case:
        """The same case decoding another number of tokens."""
        return replace(self, length=Length(self.length.prompt, tokens))

    @property
    def cache_bytes(self) -> int:
        """Bytes of an fp16 cache that a token in the middle of decoding reads."""
        length = self.length
        middle = Workload(prompt_tokens=length.prompt, decode_tokens=length.decode).middle_context
        return decode_traffic(Subnet.full(self.spec, 1), middle).cache_bytes


class Cases:
    """Makes the cases of one model; holds what they need until it is closed."""

    def __init__(
        self, name: str, options: argparse.Namespace, llama: PeerProcess | None,
        torch: PeerProcess | None,
    ) -> None:  # fmt: skip
        self.name, self.options, self.llama, self.torch = name, options, llama, torch
        self.config, self.spec = CONFIGS[name], full_spec(name)
        self.length = length_for(name, options)
        self._stack = ExitStack()

    def __enter__(self) -> Cases:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for peer in (self.llama, self.torch):
            if peer is not None and not any(error):
                peer.ask("close")

    def all(self) -> list[Case]:
        """Every runner with every number of threads."""
        return [*self._ours(), *self._llama_cpp(), *self._torch()]

    def _ours(self) -> Iterator[Case]:
        artifact = random_artifact(self.name, self.config, cache=self.options.cache)
        for planes in self.options.planes:
            # Embedding and head have the planes that go with the address by default.
            subnet = artifact.subnet(f"b{planes}")
            weight_bytes = decode_traffic(subnet, 0).weight_bytes
            for threads in self.options.threads:
                engine = self._stack.enter_context(Engine(artifact, subnet, threads=threads))
                sample = partial(_time_engine, Runner(engine, subnet))
                yield self._case(f"pliant b{planes}", threads, weight_bytes, sample)

    def _llama_cpp(self) -> Iterator[Case]:
        if self.llama is None:
            return
        for kind in self.options.types:
            file_type, _, plain = kind.partition(":")
            path = self.options.cache / f"{self.name}-{fingerprint(self.config)}-{file_type}.gguf"
            found = self.llama.ask(
                "prepare", path=str(path), config=self.config, file_type=file_type
            )
            context = self.length.prompt + self.length.decode
            self.llama.ask("load", name=kind, path=str(path), context=context, repack=not plain)
            for threads in self.options.threads:
                sample = partial(_time_peer, self.llama, kind, threads)
                yield self._case(f"llama.cpp {kind}", threads, found["weight_bytes"], sample)

    def _torch(self) -> Iterator[Case]:
        if self.torch is None:
            return
        for kind in self.options.torch:
            found = self.torch.ask("load", name=kind, config=self.config, dtype=DTYPES[kind])
            for threads in self.options.threads:
                sample = partial(_time_peer, self.torch, kind, threads)
                case = self._case(f"torch {kind}", threads, found["weight_bytes"], sample)
                if kind == "bf16":
                    prompt = min(BF16_PROMPT, case.length.prompt)
                    case = replace(case, length=Length(prompt, case.length.decode))
                yield case

    def _case(
        self, runner: str, threads: int, weight_bytes: int, sample: Callable[[Length], RunSample]
    ) -> Case:
        return Case(runner, threads, self.length, self.spec, weight_bytes, sample)


def length_for(name: str, options: argparse.Namespace) -> Length:
    """Tokens of a run of a model: what was asked for, within its context."""
    decode = options.decode or DECODE_TOKENS.get(name, 24)
    prompt = options.prompt or min(PROMPT_TOKENS.get(name, 512), options.most_prompt)
    context = CONFIGS[name]["max_position_embeddings"]
    return Length(min(prompt, context - decode), decode)


def _time_engine(runner: Runner, length: Length) -> RunSample:
    workload = Workload(prompt_tokens=length.prompt, decode_tokens=length.decode)
    return time_run(runner, workload)


def _time_peer(peer: PeerProcess, name: str, threads: int, length: Length) -> RunSample:
    answer = peer.ask(
        "run", name=name, threads=threads, prompt_tokens=length.prompt,
        decode_tokens=length.decode,
    )  # fmt: skip
    return RunSample(answer["first_seconds"], answer["decode_seconds"])
