"""`verify_target`: the same texts in our engine and in the one an export is for.

The golden texts and conversations of the artifact are turned into tokens on both sides, the logits
behind every token are compared, and both write on greedily. Our side computes with the planes of
the artifact in float32, so what differs is the export and the other engine's arithmetic, nothing of
ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.errors import VerificationError
from pliant.evaluate import GoldenText, kl_nats, read_golden, read_golden_texts, token_nats
from pliant.evaluate.golden_texts import GREEDY_TOKENS, as_messages, golden_prompts, kept_ids
from pliant.evaluate.windows import checked_start, windows
from pliant.export.target_engine import TargetEngine
from pliant.measurement import Progress, silent
from pliant.runtime import Cache, Chunk, Engine, Tokenizer

#: Of held-out text so many tokens are compared, in windows of at most so many: enough to see a
#: difference of a hundredth of a per cent, and a minute of a model with a billion weights.
TEXT_TOKENS = 4096
_WINDOW = 512

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
    `perplexity` and `their_perplexity` are over the tokens of the prompt behind its first.
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
    perplexity: float | None = None
    their_perplexity: float | None = None


class _Prompt(NamedTuple):
    """A prompt before it is compared; `greedy` is what the artifact says the subnet writes."""

    name: str
    ids: list[int]
    same_ids: bool | None
    greedy: tuple[int, ...] = ()


class _Logits(NamedTuple):
    """Our logits and theirs, and the tokens that follow: all but the last few, or all."""

    ours_NV: NDArray[np.float32]
    theirs_NV: NDArray[np.float32]
    targets_M: NDArray[np.int32]


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
    documents: Mapping[str, Sequence[str]] | None = None,
    python: str | None = None,
    threads: int = 1,
    progress: Progress = silent,
) -> TargetReport:
    """Compare the export `path` of the subnet at `address` with the artifact; says what differs.

    `storage` is how its weights are stored. `documents` are held-out texts, whose perplexity is
    compared over the first `TEXT_TOKENS` tokens in the same windows on both sides. Raises what
    `TargetEngine` raises; differences are in the report, and `require` turns them into an error.
    """
    tokenizer = Tokenizer.load(artifact.path, artifact.manifest.files)
    with (
        TargetEngine(target, path, python, threads) as theirs,
        Engine(
            artifact, artifact.subnet(address), threads=threads,
            activations="float32", cache_type="float32",
        ) as ours,
    ):  # fmt: skip
        prompts, skipped = _prompts(artifact, address, tokenizer, theirs)
        context = min(ours.max_context, theirs.context)
        texts = documents or {}
        checks = []
        for done, prompt in enumerate(prompts):
            progress("comparing", done, len(prompts) + len(texts))
            checks.append(_compare(prompt, context, ours, theirs))
        for done, (name, content) in enumerate(texts.items(), start=len(prompts)):
            progress("comparing", done, len(prompts) + len(texts))
            checks.append(_compare_text(name, content, context, tokenizer, ours, theirs))
        progress("comparing", len(checks), len(checks))
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
    artifact: Artifact, address: str, tokenizer: Tokenizer, theirs: TargetEngine
) -> tuple[list[_Prompt], dict[str, str]]:
    """The golden texts of the artifact, or where it has none those of this version; then tokens.

    Ids are equal where ours, theirs and those of the artifact are.
    """
    golden = read_golden_texts(artifact)
    texts, skipped = golden_prompts(tokenizer)
    is_recorded = golden is not None and not address and golden.planes == artifact.num_planes
    if golden is not None:
        texts, skipped = list(golden.texts), dict(golden.left_out)
    plain = [text.text for text in texts if not text.messages]
    read = iter(theirs.encode(plain))
    prompts = []
    for text in texts:
        their_ids = theirs.chat(as_messages(text)) if text.messages else next(read)
        same = their_ids == list(text.ids) == _own_ids(tokenizer, text)
        greedy = text.greedy if is_recorded else ()
        prompts.append(_Prompt(text.name, list(text.ids), same, greedy))
    prompts += [_Prompt(f"golden {len(ids)}", ids, None) for ids in _golden_ids(artifact)]
    return prompts, skipped


def _own_ids(tokenizer: Tokenizer, text: GoldenText) -> list[int]:
    if text.messages:
        return tokenizer.apply_chat_template(as_messages(text))
    return tokenizer.encode(text.text)


def _golden_ids(artifact: Artifact) -> Iterator[list[int]]:
    """The prompts of `golden.json`, which are tokens, each once."""
    if "golden.json" not in artifact.manifest.files:
        return
    records = read_golden(artifact.path / "golden.json")
    yield from map(list, dict.fromkeys(prompt.tokens for one in records for prompt in one.prompts))


def _compare(prompt: _Prompt, context: int, ours: Engine, theirs: TargetEngine) -> PromptCheck:
    """Logits behind every token of a prompt, then greedy tokens on both sides."""
    ids = kept_ids(prompt.ids, context)
    count = 0 if prompt.same_ids is None else min(GREEDY_TOKENS, context - len(ids))
    cache = ours.new_cache(len(ids) + count)
    found = _logits(ids, cache, ours, theirs)
    chosen = theirs.greedy(ids, count) if count else []
    # What is recorded follows half of our own context; theirs may be shorter.
    is_recorded = len(prompt.greedy) >= count and ids == kept_ids(prompt.ids, ours.max_context)
    recorded = prompt.greedy if is_recorded else ()
    equal, gap = _follow(found.ours_NV[-1], chosen, recorded, cache, ours)
    return _check(prompt.name, prompt.same_ids, [found], (equal, count, gap))


def _compare_text(
    name: str,
    documents: Sequence[str],
    context: int,
    tokenizer: Tokenizer,
    ours: Engine,
    theirs: TargetEngine,
) -> PromptCheck:
    """Logits and perplexity of held-out text, window by window; nothing is written."""
    start = checked_start(tokenizer.start_id)
    size = min(context, _WINDOW)
    cache = ours.new_cache(size)
    parts: list[_Logits] = []
    same, left = True, TEXT_TOKENS
    for document in documents:
        if left <= 0:
            break
        same = same and theirs.encode([document])[0] == tokenizer.encode(document)
        ids = tokenizer.encode(document, add_bos=False)[:left]
        left -= len(ids)
        for window in windows(ids, start, size, size):
            cache.truncate(0)
            found = _logits(window.inputs.tolist(), cache, ours, theirs)
            parts.append(found._replace(targets_M=window.targets))
    return _check(name, same, parts, (0, 0, 0.0))


def _logits(ids: list[int], cache: Cache, ours: Engine, theirs: TargetEngine) -> _Logits:
    (mine_NV,) = ours.forward_chunk([Chunk(np.array(ids, np.int32), cache, logits="all")])
    other_NV = theirs.logits(ids)
    if other_NV.shape != mine_NV.shape:
        raise VerificationError(
            f"{theirs.engine} gives {other_NV.shape[1]} logits, the artifact {mine_NV.shape[1]}; "
            "the file is not an export of it."
        )
    return _Logits(mine_NV, other_NV, np.array(ids[1:], np.int32))


def _check(
    name: str, same: bool | None, parts: Sequence[_Logits], written: tuple[int, int, float]
) -> PromptCheck:
    """What the logits of one or more windows say together."""
    differences, kls, tops, ours, theirs = [], [], [], [], []
    for mine_NV, other_NV, targets_M in parts:
        differences.append(_rms(mine_NV - other_NV) / np.maximum(_rms(mine_NV), 1e-30))
        kls.append(kl_nats(mine_NV, other_NV))
        tops.append(mine_NV.argmax(axis=1) == other_NV.argmax(axis=1))
        ours.append(token_nats(mine_NV[: len(targets_M)], targets_M))
        theirs.append(token_nats(other_NV[: len(targets_M)], targets_M))
    return PromptCheck(
        name=name,
        tokens=sum(map(len, kls)),
        same_ids=same,
        worst=float(np.concatenate(differences).max()),
        kl_nats=float(np.concatenate(kls).mean()),
        top1=float(np.concatenate(tops).mean()),
        greedy=written[0],
        greedy_asked=written[1],
        greedy_gap=written[2],
        perplexity=_perplexity(np.concatenate(ours)),
        their_perplexity=_perplexity(np.concatenate(theirs)),
    )


def _perplexity(nats_M: NDArray[np.float64]) -> float | None:
    return float(np.exp(min(nats_M.mean(), 700.0))) if len(nats_M) else None


def _follow(
    last_V: NDArray[np.float32],
    chosen: Sequence[int],
    recorded: Sequence[int],
    cache: Cache,
    ours: Engine,
) -> tuple[int, float]:
    """How many of their tokens are ours from the first on, and our gap where they part.

    Ours are those that the artifact has `recorded`, and else the likeliest here.
    """
    for place, token in enumerate(chosen):
        best = recorded[place] if recorded else int(last_V.argmax())
        if best != token:
            return place, float((last_V[best] - last_V[token]) / max(_rms(last_V[None])[0], 1e-30))
        (rows,) = ours.forward_chunk([Chunk(np.array([token], np.int32), cache)])
        last_V = rows[-1]
    return len(chosen), 0.0


def _rms(logits_NV: NDArray[np.float32]) -> NDArray[np.float64]:
    rms_N: NDArray[np.float64] = np.sqrt(np.mean(np.square(logits_NV, dtype=np.float64), axis=1))
    return rms_N
