"""Damage tiny artifacts of every kind in thousands of ways and open, read, verify and run each.

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
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "artifact")]

from mutations import mutate  # noqa: E402

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


def attempt(folder: Path, number: int, with_engine: bool) -> str:
    """What became of one damaged artifact."""
    from journeys import readings, runs

    opened: list[Artifact] = []
    if refused(lambda: opened.append(Artifact.open(folder))):
        refused(verify, folder)
        return "refused at open"
    for step in readings().values():
        refused(step, opened[0])
    bad_values = refused(verify, folder)
    steps = runs(number).values() if with_engine else ()
    # All of them, also behind one that is refused.
    engine_refused = sum(refused(step, opened[0]) for step in steps) > 0
    if bad_values:
        return "refused by verify and engine" if engine_refused else "refused by verify, ran"
    return "refused by engine" if engine_refused else "ran"


class Place(Protocol):
    """Where things are damaged, by any number of processes."""

    def run(self, number: int) -> tuple[str, str]:
        """Mutation `number`: its outcome, and how what was damaged."""

    def clean(self, process: int) -> None:
        """Remove what a process left."""


class Workplace:
    """Pristine artifacts of every kind and a folder in which copies of them are damaged."""

    def __init__(self, root: Path, with_engine: bool):
        # Behind `load_native`: these load the extension.
        from specimens import KINDS, specimen

        self.root = root
        self.with_engine = with_engine
        self.pristine = [
            specimen(root / f"pristine-{place}.pliant", kind, with_engine)
            for place, kind in enumerate(KINDS)
        ]

    def damaged(self, process: int) -> Path:
        """Where a process damages."""
        return self.root / f"damaged-{process}.pliant"

    def clean(self, process: int) -> None:
        """Remove what a process left."""
        shutil.rmtree(self.damaged(process), ignore_errors=True)
        shutil.rmtree(self.damaged(process).with_suffix(".out"), ignore_errors=True)

    def run(self, number: int) -> tuple[str, str]:
        """Mutation `number`: its outcome, and how which artifact was damaged."""
        folder = self.damaged(os.getpid())
        self.clean(os.getpid())
        # Links, not copies: `mutations.write` replaces files.
        pristine = self.pristine[number % len(self.pristine)]
        shutil.copytree(pristine, folder, copy_function=os.link)
        damage = f"{pristine.stem}: {mutate(folder, random.Random(number))}"
        try:
            return attempt(folder, number, self.with_engine), damage
        except Exception:
            traceback.print_exc()
            return "FAILED", damage


def work(place: Place, numbers: range, shared: mmap.mmap) -> None:
    """Run mutations in this process, which may die of it; `shared` says how far it came."""
    for number in numbers:
        shared[:8] = number.to_bytes(8, "little")
        signal.alarm(SECONDS_PER_MUTATION)
        outcome, damage = place.run(number)
        signal.alarm(0)
        if outcome == "FAILED":
            print(f"mutation {number} ({damage})", file=sys.stderr, flush=True)
        slot = 8 + 8 * OUTCOMES.index(outcome)
        count = int.from_bytes(shared[slot : slot + 8], "little") + 1
        shared[slot : slot + 8] = count.to_bytes(8, "little")


def supervise(place: Place, numbers: range) -> Counter:
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
                work(place, numbers, shared)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        place.clean(child)
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


def fuzz(place: Place, first: int, count: int, jobs: int) -> Counter:
    """Outcomes of `count` mutations, split between `jobs` processes."""
    pipes = []
    for job in range(jobs):
        numbers = range(first + count * job // jobs, first + count * (job + 1) // jobs)
        reading, writing = os.pipe()
        if os.fork() == 0:
            counts = supervise(place, numbers)
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


def run_from_command_line(description: str, make_place: Callable[[Path, bool], Place]) -> int:
    """Read the command line, run mutations of the place made in a folder, print what happened."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--native", help="the extension to load, such as one with sanitizers")
    parser.add_argument("--replay", type=int, help="run this one mutation in this process")
    options = parser.parse_args()
    with_engine = load_native(options.native)
    memory = Path("/dev/shm")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as root:
        place = make_place(Path(root), with_engine)
        if options.replay is not None:
            print(*place.run(options.replay), sep=": ")
            return 0
        counts = fuzz(place, options.first, options.mutations, options.jobs)
    for name in OUTCOMES:
        print(f"{counts[name]:8} {name}")
    seconds = time.monotonic() - begin
    engine = "with" if with_engine else "without"
    print(f"{sum(counts.values())} mutations in {seconds:.0f} s, {engine} the engine")
    return 1 if counts["FAILED"] or sum(counts.values()) != options.mutations else 0


if __name__ == "__main__":
    sys.exit(run_from_command_line(__doc__, Workplace))
