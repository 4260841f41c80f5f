"""Damage a tiny artifact in thousands of ways and open, verify and run each one.

    python tests/fuzz/fuzz_artifact.py --mutations 100000 --jobs 2
    python tests/fuzz/fuzz_artifact.py --replay 4711        # one mutation, with its traceback

Allowed outcomes are success and a `PliantError`. Anything else, another exception, a death of the
process or a mutation that takes 30 s, is printed with its number, and the exit status is 1.
With `--native FILE` that build of the extension is used; for one with sanitizers start it as
`LD_PRELOAD="$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 python ...`.
"""

from __future__ import annotations

import argparse
import importlib.util
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "artifact")]

from mutations import mutate  # noqa: E402
from small_artifact import build, small_spec  # noqa: E402

from pliant.artifact import Artifact, verify  # noqa: E402
from pliant.errors import PliantError  # noqa: E402

OUTCOMES = ["refused at open", "refused by verify, ran", "refused by verify and engine",
            "refused by engine", "ran", "FAILED"]  # fmt: skip
SECONDS_PER_MUTATION = 30
#: Address space of a worker, far above what the tiny model needs: a bomb becomes a MemoryError.
MOST_BYTES = 6 * 1024**3


def load_native(file: str | None) -> bool:
    """Load the extension, from `file` if given; False where this checkout has none."""
    if file is not None:
        specification = importlib.util.spec_from_file_location("pliant._native", file)
        module = importlib.util.module_from_spec(specification)
        sys.modules["pliant._native"] = module
        specification.loader.exec_module(module)
    try:
        import pliant.runtime.engine  # noqa: F401
    except ImportError as error:
        print(f"without the engine: {error}", file=sys.stderr)
        return False
    return True


def refused(work, *arguments) -> bool:
    """Whether `work` raised a `PliantError`; a message without words is a failure too."""
    try:
        work(*arguments)
    except PliantError as error:
        if len(str(error)) < 20:
            raise AssertionError(f"not a sentence: {error!r}") from error
        return True
    return False


def run_engine(artifact: Artifact) -> None:
    """Build an engine of two cuts and run a few tokens through each."""
    import numpy as np

    from pliant.runtime.chunk import Chunk
    from pliant.runtime.engine import Engine

    for address in ("", "w0.5-b3"):
        engine = Engine(artifact, artifact.subnet(address), threads=1)
        try:
            cache = engine.new_cache(8)
            tokens = np.arange(3, dtype=np.int32) % engine.vocab_size
            engine.forward_chunk([Chunk(tokens, cache)])
        finally:
            engine.close()


def attempt(folder: Path, with_engine: bool) -> str:
    """What became of one damaged artifact."""
    opened: list[Artifact] = []
    if refused(lambda: opened.append(Artifact.open(folder))):
        refused(verify, folder)
        return "refused at open"
    for name in opened[0].subnet_names():
        refused(opened[0].subnet, name)
    bad_values = refused(verify, folder)
    engine_refused = with_engine and refused(run_engine, opened[0])
    if bad_values:
        return "refused by verify and engine" if engine_refused else "refused by verify, ran"
    return "refused by engine" if engine_refused else "ran"


class Workplace:
    """A pristine artifact and a folder in which copies of it are damaged."""

    def __init__(self, root: Path, codec: str = "uniform"):
        spec = small_spec(num_blocks=2, vocab_size=19, hidden_size=24, ffn_size=70)
        self.root = root
        # Three planes keep it small: each mutation hashes every file twice.
        self.pristine = build(root / "pristine.pliant", spec, planes=3, codec=codec).path

    def run(self, number: int, with_engine: bool) -> tuple[str, str]:
        """Mutation `number`: its outcome, and how the artifact was damaged."""
        folder = self.root / f"damaged-{os.getpid()}.pliant"
        shutil.rmtree(folder, ignore_errors=True)
        # Links, not copies: `mutations.write` replaces files.
        shutil.copytree(self.pristine, folder, copy_function=os.link)
        damage = mutate(folder, random.Random(number))
        try:
            return attempt(folder, with_engine), damage
        except Exception:
            traceback.print_exc()
            return "FAILED", damage


def work(place: Workplace, numbers: range, with_engine: bool, shared: mmap.mmap) -> None:
    """Run mutations in this process, which may die of it; `shared` says how far it came."""
    for number in numbers:
        shared[:8] = number.to_bytes(8, "little")
        signal.alarm(SECONDS_PER_MUTATION)
        outcome, damage = place.run(number, with_engine)
        signal.alarm(0)
        if outcome == "FAILED":
            print(f"mutation {number} ({damage})", file=sys.stderr, flush=True)
        slot = 8 + 8 * OUTCOMES.index(outcome)
        count = int.from_bytes(shared[slot : slot + 8], "little") + 1
        shared[slot : slot + 8] = count.to_bytes(8, "little")


def supervise(place: Workplace, numbers: range, with_engine: bool) -> Counter:
    """Run mutations in child processes, going on behind each one that kills its process."""
    shared = mmap.mmap(-1, 4096)
    deaths = 0
    while numbers:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if "LD_PRELOAD" not in os.environ:
                    # A sanitizer reserves terabytes of address space.
                    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
                work(place, numbers, with_engine, shared)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        shutil.rmtree(place.root / f"damaged-{child}.pliant", ignore_errors=True)
        if status == 0:
            break
        reached = int.from_bytes(shared[:8], "little")
        print(f"mutation {reached} ended its process: status {status}", file=sys.stderr)
        deaths += 1
        numbers = range(reached + 1, numbers.stop)
    slots = range(8, 8 + 8 * len(OUTCOMES), 8)
    counts = [int.from_bytes(shared[slot : slot + 8], "little") for slot in slots]
    counts[OUTCOMES.index("FAILED")] += deaths
    return Counter(dict(zip(OUTCOMES, counts, strict=True)))


def fuzz(place: Workplace, first: int, count: int, jobs: int, with_engine: bool) -> Counter:
    """Outcomes of `count` mutations, split between `jobs` processes."""
    pipes = []
    for job in range(jobs):
        numbers = range(first + count * job // jobs, first + count * (job + 1) // jobs)
        reading, writing = os.pipe()
        if os.fork() == 0:
            counts = supervise(place, numbers, with_engine)
            os.write(writing, " ".join(str(counts[name]) for name in OUTCOMES).encode())
            os._exit(0)
        os.close(writing)
        pipes.append(reading)
    total: Counter = Counter()
    for pipe in pipes:
        numbers = os.read(pipe, 4096).split()
        os.wait()
        total += Counter(dict(zip(OUTCOMES, map(int, numbers), strict=True)))
    return total


def main() -> int:
    """Read the command line, run, print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--native", help="the extension to load, such as one with sanitizers")
    parser.add_argument("--codec", default="uniform", help="what the artifact is made with")
    parser.add_argument("--replay", type=int, help="run this one mutation in this process")
    options = parser.parse_args()
    with_engine = load_native(options.native)
    memory = Path("/dev/shm")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as root:
        place = Workplace(Path(root), options.codec)
        if options.replay is not None:
            print(*place.run(options.replay, with_engine), sep=": ")
            return 0
        counts = fuzz(place, options.first, options.mutations, options.jobs, with_engine)
    for name in OUTCOMES:
        print(f"{counts[name]:8} {name}")
    seconds = time.monotonic() - begin
    engine = "with" if with_engine else "without"
    print(f"{sum(counts.values())} mutations in {seconds:.0f} s, {engine} the engine")
    return 1 if counts["FAILED"] or sum(counts.values()) != options.mutations else 0


if __name__ == "__main__":
    sys.exit(main())
