"""Measure the speed of subnets beside the read bandwidth of the machine: `pliant bench`."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import psutil

from pliant.artifact import Artifact
from pliant.costs.measured import MeasuredStep
from pliant.evaluate import Runner, Speed, Workload, measure_speeds
from pliant.measurement import (
    Measurement,
    Progress,
    format_seconds,
    peak_memory_bytes,
    silent,
)
from pliant.runtime import Chunk
from pliant.runtime.bandwidth import read_rate
from pliant.runtime.engine import Engine
from pliant.runtime.threads import usable_threads
from pliant.subnet import Subnet

#: Relative difference of the two probes above which the figures between them are doubtful.
MOST_DRIFT = 0.1
#: Tokens of prompt and of generation where the context has room for them.
_PROMPT_TOKENS, _DECODE_TOKENS = 512, 128
#: Seconds that a repeat should take at least; faster models get more tokens by --generate.
_SHORT_RUN_SECONDS = 0.05


class BandwidthProbe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read bandwidth with a number of threads, before and after the measurements it belongs to."""

    threads: int
    before: Measurement
    after: Measurement

    @property
    def rate(self) -> float:
        """GB/s that shares refer to: the mean of both medians."""
        return (self.before.median + self.after.median) / 2

    @property
    def drift(self) -> float:
        """How much the second differs from the first, relative to their mean."""
        return abs(self.after.median - self.before.median) / self.rate


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds from opening the artifact to the logits of one token, and where the bytes came from.

    `read_bytes` came from storage, what the system read ahead included: 0 where it had kept the
    pages in memory, None where it does not tell.
    """

    seconds: float
    read_bytes: int | None


class BenchResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One subnet with one number of threads; `share` is its bandwidth over the probed one."""

    address: str
    threads: int
    speed: Speed
    share: float
    load: Load
    subnet: Subnet

    def steps(self) -> list[MeasuredStep]:
        """What this tells of the machine: a token in the middle of decoding, and the prompt."""
        work, speed = self.speed.workload, self.speed
        decode = MeasuredStep(
            subnet=self.subnet, threads=self.threads, cached=work.middle_context,
            cache_bits=self.subnet.bits.cache.bits, seconds=1.0 / speed.decode.median,
        )  # fmt: skip
        if work.prompt_tokens == 1:
            return [decode]
        prompt = msgspec.structs.replace(
            decode, tokens=work.prompt_tokens, cached=0,
            seconds=work.prompt_tokens / speed.prefill.median,
        )  # fmt: skip
        return [decode, prompt]


class BenchReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything one run measured, and what it holds for.

    `peak_memory_bytes` is of the whole process, all engines and mapped pages together.
    """

    machine: str
    kernels: str
    workload: Workload
    probes: list[BandwidthProbe]
    results: list[BenchResult]
    peak_memory_bytes: int
    warnings: list[str]

    def probe_of(self, threads: int) -> BandwidthProbe:
        """The probe taken with this many threads."""
        return next(probe for probe in self.probes if probe.threads == threads)


def workload_for(
    context: int, prompt: int | None = None, generate: int | None = None, repeats: int = 5
) -> Workload:
    """The workload asked for; what is left open becomes 512 + 128 tokens, or what fits.

    Raises `UsageError` where the tokens exceed `context`.
    """
    if prompt is None:
        prompt = max(1, min(_PROMPT_TOKENS, (context - (generate or 0)) * 4 // 5))
    if generate is None:
        generate = max(1, min(_DECODE_TOKENS, context - prompt))
    workload = Workload(prompt_tokens=prompt, decode_tokens=generate, repeats=repeats)
    workload.require_context(context)
    return workload


def bench(
    artifact: Artifact,
    addresses: Sequence[str],
    threads: Sequence[int],
    workload: Workload,
    *,
    kv_bits: int | None = None,
    kv_window: int | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Load, prefill and decode every subnet with every number of threads, in turn.

    No `threads` means the cores this process may use, no `addresses` the full model.
    The read bandwidth is probed before and after with each number of threads. `say` is told how
    long it will take and what makes the figures doubtful. Keys and values are held as the cuts
    say, or in `kv_bits` behind a `kv_window` where these are given. Raises `UsageError` for
    addresses, caches, thread counts and workloads that cannot be, before anything is measured.
    """
    cases = [
        (address, subnet.with_cache(kv_bits, kv_window), count)
        for address, subnet, count in _checked_cases(artifact, addresses, threads, workload)
    ]
    counts = sorted({count for _, _, count in cases})
    before = {count: read_rate(count) for count in counts}
    loads = []
    for place, (_, subnet, count) in enumerate(cases):
        loads.append(measure_load(artifact.path, subnet, count))
        progress("loading", place + 1, len(cases))
    engines = [Engine(artifact, subnet, count) for _, subnet, count in cases]
    try:
        runners = [
            Runner(
                engine,
                engine.subnet,
                threads_text(engine.threads),
                memory_of(engine),
                engine.adapter_rank,
            )
            for engine in engines
        ]
        clock = _Clock(workload.repeats, say)
        speeds = measure_speeds(runners, workload, progress=progress, after_round=clock)
        kernels = engines[0].kernels
    finally:
        for engine in engines:
            engine.close()
    probes = [
        BandwidthProbe(threads=count, before=before[count], after=read_rate(count))
        for count in counts
    ]
    rates = {probe.threads: probe.rate for probe in probes}
    results = [
        BenchResult(
            address=address,
            threads=count,
            speed=speed,
            share=speed.bandwidth.median / rates[count],
            load=load,
            subnet=subnet,
        )
        for (address, subnet, count), speed, load in zip(cases, speeds, loads, strict=True)
    ]
    warnings = list(_warnings(probes, results))
    for warning in warnings:
        say(f"warning: {warning}")
    return BenchReport(
        machine=machine_text(),
        kernels=kernels,
        workload=workload,
        probes=probes,
        results=results,
        peak_memory_bytes=peak_memory_bytes(),
        warnings=warnings,
    )


def _checked_cases(
    artifact: Artifact, addresses: Sequence[str], threads: Sequence[int], workload: Workload
) -> list[tuple[str, Subnet, int]]:
    """Every subnet with every number of threads, each once; all of them can be run."""
    workload.require_context(artifact.spec.max_context)
    subnets = {address: artifact.subnet(address) for address in addresses or [""]}
    counts = [usable_threads(count) for count in dict.fromkeys(threads)] or [usable_threads(None)]
    return [
        (address or "full", subnet, count)
        for address, subnet in subnets.items()
        for count in counts
    ]


def measure_load(path: Path, subnet: Subnet, threads: int) -> Load:
    """Open the artifact and compute one token, after asking the system to let go of its pages.

    Pages that another process has mapped stay in memory; `Load.read_bytes` tells.
    """
    gc.collect()
    _drop_pages(path)
    before = _bytes_from_storage()
    start = time.perf_counter()
    with Engine(Artifact.open(path), subnet, threads=threads) as engine:
        engine.forward_chunk([Chunk(np.zeros(1, np.int32), engine.new_cache(1))])
        seconds = time.perf_counter() - start
    after = _bytes_from_storage()
    read = None if before is None or after is None else after - before
    return Load(seconds=seconds, read_bytes=read)


def _drop_pages(path: Path) -> None:
    """Ask the system to forget the cached pages of the files in a folder, where it can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in path.iterdir():
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _bytes_from_storage() -> int | None:
    """Bytes this process has had read from storage so far."""
    counters = getattr(psutil.Process(), "io_counters", None)
    if counters is None:
        return None
    try:
        return int(counters().read_bytes)
    except (psutil.Error, OSError):
        return None


def memory_of(engine: Engine) -> Callable[[], int]:
    """A function that says what `engine` holds: weights it reads, vectors, caches, scratch."""

    def held() -> int:
        memory = engine.memory()
        return sum(memory[part] for part in ("mapped", "vectors", "cache", "scratch"))

    return held


def threads_text(threads: int) -> str:
    """A number of threads as a condition of a measurement."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def machine_text() -> str:
    """This machine in words: processor, CPUs, system."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                name = line.partition(":")[2].strip() or name
                break
    return f"{name}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"


class _Clock:
    """Says after the first round how long the others will take."""

    def __init__(self, rounds: int, say: Callable[[str], None]) -> None:
        self._rounds, self._say = rounds, say
        self._start = time.perf_counter()

    def __call__(self, number: int) -> None:
        if number == 0:
            seconds = time.perf_counter() - self._start
            self._say(
                f"the first round, which warms up, took {format_seconds(seconds)}; "
                f"{self._rounds} more to go: about {format_seconds(seconds * self._rounds)}"
            )


def _warnings(probes: Sequence[BandwidthProbe], results: Sequence[BenchResult]) -> Iterator[str]:
    """What makes the figures doubtful, in sentences."""
    for probe in probes:
        if probe.drift > MOST_DRIFT:
            yield (
                f"the read bandwidth with {threads_text(probe.threads)} was "
                f"{probe.before.median:.1f} GB/s before and {probe.after.median:.1f} GB/s after; "
                "the machine is not quiet, measure again."
            )
    for result in results:
        speed = result.speed
        seconds = speed.workload.decode_tokens / speed.decode.median
        if seconds < _SHORT_RUN_SECONDS:
            yield (
                f"{result.address} generates {speed.workload.decode_tokens} tokens in "
                f"{format_seconds(seconds)}, too short to time well; raise --generate."
            )
