"""`verify_target`: the same texts in our engine and in the one an export is for.

Texts and conversations are turned into tokens on both sides, the logits behind every token are
compared, and both write on greedily. Our side computes with the planes of the artifact in float32,
so what differs is the export and the other engine's arithmetic, nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.errors import GenerationError, VerificationError
from pliant.evaluate import kl_nats, read_golden
from pliant.export.target_engine import TargetEngine
from pliant.measurement import Progress, silent
from pliant.runtime import Chunk, Engine, Message, Tokenizer

GREEDY_TOKENS = 64

#: What tokenizers trip over: spaces, digits, marks above letters, other scripts, line ends, code.
TEXTS = {
    "story": "Once upon a time there was a little fox who lived in the wood.",
    "digits": "In 1999 it was 12345 + 678 = 13023, or 3.14159.",
    "letters": "Café, naïve “quotes” — 中文字 日本語 Ελλάδα 😀👍🏽",
    "spaces": "  two spaces,\n\n\ta tab\r\nand  lines \n",
    "code": "def f(x):\n    return x ** 2  # don't\n",
}
CONVERSATIONS: dict[str, Sequence[Message]] = {
    "question": ({"role": "user", "content": "Who lived in the wood?"},),
    "dialogue": (
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello. How can I help?"},
        {"role": "user", "content": "Tell me a story of 2 foxes."},
    ),
}

#: RMS of the differences of logits over the RMS of the logits that a way of storing explains.
#: - float32: another order of summation, and llama.cpp's table for GELU with 11 bits.
#: - float16, bfloat16: weights (and llama.cpp's activations) rounded to 11 and 8 bits; roundings
#:   are independent, so through n matrices they grow with the root of n: 16 units are for 256.
#: - blocks: llama.cpp rounds activations to 8 bits in blocks of 32 before every product, which
#:   costs what our own int8 engine costs (measured: 2.5 %, allowed as there: 20 %).
TOLERANCES = {
    "F32": 2.0**-10, "float32": 2.0**-12, "F16": 16 * 2.0**-11, "float16": 16 * 2.0**-11,
    "BF16": 16 * 2.0**-8, "bfloat16": 16 * 2.0**-8,
}  # fmt: skip
_BLOCK_TOLERANCE = 0.2


class PromptCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt on both sides.

    `same_ids` is None for prompts that are tokens. `worst` is the RMS of the differences of the
    logits over the RMS of the logits, at the worst token; `kl_nats` and `top1` are over all tokens.
    `greedy` is how many of `greedy_asked` tokens are equal from the first on; where they part,
    `greedy_gap` is by how much our choice is ahead of theirs in our own logits, over their RMS.
    """

    name: str
    tokens: int
    same_ids: bool | None
    worst: float
    kl_nats: float
    top1: float
    greedy: int
    greedy_asked: int
    greedy_gap: float


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification found; `skipped` says which prompts were left out, and why."""

    target: str
    engine: str
    tolerance: float
    load_seconds: float
    prompts: tuple[PromptCheck, ...]
    skipped: dict[str, str]

    @property
    def failures(self) -> list[str]:
        """A sentence for each thing that is beyond the tolerance."""
        found = []
        for prompt in self.prompts:
            if prompt.same_ids is False:
                found.append(f"{prompt.name}: the token ids differ")
            if not prompt.worst <= self.tolerance:
                found.append(
                    f"{prompt.name}: logits differ by {prompt.worst:.3g} of their RMS, "
                    f"{self.tolerance:.3g} is allowed"
                )
            if prompt.greedy < prompt.greedy_asked and prompt.greedy_gap > 2 * self.tolerance:
                found.append(
                    f"{prompt.name}: greedy token {prompt.greedy + 1} differs, and not by a tie"
                )
        return found


def tolerance_of(storage: str) -> float:
    """What an export with the kinds in `storage`, as `21 Q4_0, 2 F16`, may differ by."""
    kinds = [part.split()[-1] for part in storage.split(",")]
    return max(TOLERANCES.get(kind, _BLOCK_TOLERANCE) for kind in kinds)


def verify_target(
    artifact: Artifact,
    address: str,
    target: str,
    path: Path,
    storage: str,
    *,
    python: str | None = None,
    threads: int = 1,
    progress: Progress = silent,
) -> TargetReport:
    """Compare the export `path` of the subnet at `address` with the artifact; says what differs.

    `storage` is how its weights are stored. Raises what `TargetEngine` raises; differences are in
    the report, and `require` turns them into an error.
    """
    tokenizer = Tokenizer.load(artifact.path)
    with (
        TargetEngine(target, path, python, threads) as theirs,
        Engine(
            artifact, artifact.subnet(address), threads=threads,
            activations="float32", cache_type="float32",
        ) as ours,
    ):  # fmt: skip
        prompts, skipped = _prompts(artifact, tokenizer, theirs)
        context = min(ours.max_context, theirs.context)
        checks = []
        for done, (name, ids, same) in enumerate(prompts):
            progress("comparing", done, len(prompts))
            # Half the context is left for what is written.
            kept = ids[: max(context // 2, 1)]
            count = min(GREEDY_TOKENS, context - len(kept)) if same is not None else 0
            checks.append(_compare(name, kept, same, count, ours, theirs))
        progress("comparing", len(prompts), len(prompts))
        return TargetReport(
            target=target, engine=theirs.engine, tolerance=tolerance_of(storage),
            load_seconds=theirs.seconds, prompts=tuple(checks), skipped=skipped,
        )  # fmt: skip


def require(report: TargetReport) -> None:
    """`VerificationError` where a report has failures; all of them are named."""
    if report.failures:
        raise VerificationError(
            f"The export is not the same model in {report.engine}: {'; '.join(report.failures)}. "
            "Do not use it; report the model's config and tokenizer."
        )


def _prompts(
    artifact: Artifact, tokenizer: Tokenizer, theirs: TargetEngine
) -> tuple[list[tuple[str, list[int], bool | None]], dict[str, str]]:
    """Name, our token ids, and whether theirs are equal (None: given as tokens)."""
    skipped: dict[str, str] = {}
    prompts: list[tuple[str, list[int], bool | None]] = []
    for (name, text), their_ids in zip(
        TEXTS.items(), theirs.encode(list(TEXTS.values())), strict=True
    ):
        ids = tokenizer.encode(text)
        prompts.append((name, ids, ids == their_ids))
    for name, messages in CONVERSATIONS.items():
        if tokenizer.chat_template is None:
            skipped[name] = "the model has no chat template"
            continue
        try:
            ids = tokenizer.apply_chat_template(messages)
        except GenerationError as error:
            skipped[name] = str(error)
            continue
        prompts.append((name, ids, ids == theirs.chat(messages)))
    prompts += [(f"golden {len(ids)}", ids, None) for ids in _golden_ids(artifact)]
    return [prompt for prompt in prompts if prompt[1]], skipped


def _golden_ids(artifact: Artifact) -> Iterator[list[int]]:
    """The prompts of `golden.json`, which are tokens, each once."""
    if "golden.json" not in artifact.manifest.files:
        return
    records = read_golden(artifact.path / "golden.json")
    yield from map(list, dict.fromkeys(prompt.tokens for one in records for prompt in one.prompts))


def _compare(
    name: str,
    ids: list[int],
    same: bool | None,
    count: int,
    ours: Engine,
    theirs: TargetEngine,
) -> PromptCheck:
    """Logits behind every token of a prompt, then greedy tokens on both sides."""
    cache = ours.new_cache(len(ids) + count)
    (mine_NV,) = ours.forward_chunk([Chunk(np.array(ids, np.int32), cache, logits="all")])
    other_NV = theirs.logits(ids)
    if other_NV.shape != mine_NV.shape:
        raise VerificationError(
            f"{theirs.engine} gives {other_NV.shape[1]} logits, the artifact {mine_NV.shape[1]}; "
            "the file is not an export of it."
        )
    chosen = theirs.greedy(ids, count) if count else []
    equal, gap = _follow(mine_NV[-1], chosen, cache, ours)
    difference_N = _rms(mine_NV - other_NV) / np.maximum(_rms(mine_NV), 1e-30)
    return PromptCheck(
        name=name,
        tokens=len(ids),
        same_ids=same,
        worst=float(difference_N.max()),
        kl_nats=float(kl_nats(mine_NV, other_NV).mean()),
        top1=float((mine_NV.argmax(axis=1) == other_NV.argmax(axis=1)).mean()),
        greedy=equal,
        greedy_asked=count,
        greedy_gap=gap,
    )


def _follow(
    last_V: NDArray[np.float32], chosen: Sequence[int], cache: object, ours: Engine
) -> tuple[int, float]:
    """How many of their tokens are our likeliest, one after another, and our gap at the first."""
    for place, token in enumerate(chosen):
        best = int(last_V.argmax())
        if best != token:
            return place, float((last_V[best] - last_V[token]) / max(_rms(last_V[None])[0], 1e-30))
        (rows,) = ours.forward_chunk([Chunk(np.array([token], np.int32), cache)])
        last_V = rows[-1]
    return len(chosen), 0.0


def _rms(logits_NV: NDArray[np.float32]) -> NDArray[np.float64]:
    rms_N: NDArray[np.float64] = np.sqrt(np.mean(np.square(logits_NV, dtype=np.float64), axis=1))
    return rms_N
