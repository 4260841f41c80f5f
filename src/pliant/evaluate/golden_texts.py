"""Golden texts: what a finished artifact reads and writes, for every engine that claims to be it.

Golden logits say what the engine computes from tokens. Golden texts go the whole way: texts and
conversations as users give them, the text that the chat template makes of a conversation, the token
ids of both, and the tokens that the full model writes behind them. `pliant verify` checks this
machine against them, `pliant verify --in` another engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.errors import ArtifactError, GenerationError, VerificationError
from pliant.evaluate.golden import FLOAT32_TOLERANCE
from pliant.measurement import Progress, silent
from pliant.runtime import Chunk, Message, Tokenizer, TokenModel

GOLDEN_TEXTS_FILE = "golden_texts.json"
#: Tokens that are written behind every text.
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

#: Logits behind a written token are computed so many at a time.
_ROWS = 16
_MAX_BYTES = 4 << 20
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}\Z")]
_Text = Annotated[str, msgspec.Meta(max_length=1 << 16)]
_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 24)]
_Ids = Annotated[tuple[_Id, ...], msgspec.Meta(max_length=1 << 16)]


class GoldenMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a golden conversation."""

    role: Annotated[str, msgspec.Meta(max_length=64)]
    content: _Text


class GoldenText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text, its token ids, and the tokens that the full model writes behind them.

    Where `messages` are given, `text` is what the chat template makes of them, up to the answer;
    its ids are without what a tokenizer adds by itself. `greedy` follows the first half of a
    context of ids (`kept_ids`) and is empty where there is no room for it.
    """

    name: _Name
    text: _Text
    ids: _Ids
    greedy: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=1024)] = ()
    messages: Annotated[tuple[GoldenMessage, ...], msgspec.Meta(max_length=64)] = ()


class GoldenTexts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The golden texts of an artifact.

    `planes` are those that the full model had when it wrote `greedy`, in float32 arithmetic with a
    float32 cache: an artifact of fewer planes writes other texts. `left_out` says which
    conversations are missing, and why.
    """

    planes: Annotated[int, msgspec.Meta(ge=1, le=64)]
    texts: Annotated[tuple[GoldenText, ...], msgspec.Meta(max_length=64)]
    left_out: Annotated[dict[_Name, _Text], msgspec.Meta(max_length=64)] = {}


class GoldenTextCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well the golden texts were met.

    `greedy` of `greedy_asked` tokens are the likeliest here too; `worst_gap` is by how much another
    token was ahead of a recorded one, over the RMS of the logits, to be compared with `tolerance`.
    """

    texts: int
    tokens: int
    greedy: int
    greedy_asked: int
    worst_gap: float
    tolerance: float


def kept_ids(ids: Sequence[int], context: int) -> list[int]:
    """The ids that a continuation follows: half the context is left for what is written."""
    return list(ids[: max(context // 2, 1)])


def golden_prompts(tokenizer: Tokenizer) -> tuple[list[GoldenText], dict[str, str]]:
    """The texts and conversations of this version as `tokenizer` reads them, nothing written.

    Also why conversations were left out.
    """
    texts = [GoldenText(name=name, text=text, ids=tuple(tokenizer.encode(text)))
             for name, text in TEXTS.items()]  # fmt: skip
    left_out: dict[str, str] = {}
    for name, messages in CONVERSATIONS.items():
        if tokenizer.chat_template is None:
            left_out[name] = "the model has no chat template"
            continue
        try:
            text = tokenizer.render_chat(messages)
        except GenerationError as error:
            left_out[name] = str(error)[:1000]
            continue
        ids = tuple(tokenizer.encode(text, add_bos=False))
        said = tuple(GoldenMessage(str(one["role"]), str(one["content"])) for one in messages)
        texts.append(GoldenText(name=name, text=text, ids=ids, messages=said))
    return [text for text in texts if text.ids], left_out


def record_golden_texts(
    model: TokenModel,
    tokenizer: Tokenizer,
    planes: int,
    progress: Progress = silent,
) -> GoldenTexts:
    """The golden texts of `model`, the full subnet of an artifact of `planes` planes.

    `model` computes in float32, its cache too. `VerificationError` where a logit is not a number or
    the tokenizer has ids beyond the model's.
    """
    prompts, left_out = golden_prompts(tokenizer)
    written = []
    for done, prompt in enumerate(prompts, start=1):
        _require_known(prompt, model.vocab_size)
        kept = kept_ids(prompt.ids, model.max_context)
        greedy = _write(model, kept, min(GREEDY_TOKENS, model.max_context - len(kept)))
        written.append(msgspec.structs.replace(prompt, greedy=greedy))
        progress("golden texts", done, len(prompts))
    return GoldenTexts(planes=planes, texts=tuple(written), left_out=left_out)


def golden_texts_json(texts: GoldenTexts) -> bytes:
    """The content of `golden_texts.json`."""
    return msgspec.json.encode(texts)


def read_golden_texts(artifact: Artifact) -> GoldenTexts | None:
    """The golden texts of an artifact; None where it has none, as those of older builds.

    `ArtifactError` where the file is damaged or of another model: too large, too many texts, ids
    beyond the vocabulary, one name twice, texts without ids.
    """
    if GOLDEN_TEXTS_FILE not in artifact.manifest.files:
        return None
    path = artifact.path / GOLDEN_TEXTS_FILE
    content = artifact.read_file(GOLDEN_TEXTS_FILE, _MAX_BYTES)
    try:
        found = msgspec.json.decode(content, type=GoldenTexts)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} does not hold golden texts: {error}. Build the artifact again."
        ) from error
    most = artifact.spec.vocab_size
    for text in found.texts:
        if not text.ids or max(*text.ids, *text.greedy) >= most:
            raise ArtifactError(
                f"{path} has the text {text.name!r} with no ids or with ids beyond the {most} of "
                "the model. Build the artifact again."
            )
    if len({text.name for text in found.texts}) != len(found.texts):
        raise ArtifactError(f"{path} has two texts of one name. Build the artifact again.")
    return found


def check_golden_texts(
    model: TokenModel,
    tokenizer: Tokenizer,
    golden: GoldenTexts,
    planes: int,
    progress: Progress = silent,
) -> GoldenTextCheck:
    """Compare what `tokenizer` reads and `model` writes with `golden`.

    `model` is the full subnet of an artifact of `planes` planes, in float32. Ids and rendered
    conversations must be equal, and each recorded token the likeliest behind those before it but
    for what another order of summation explains. `VerificationError` where that is not so.
    """
    # Two logits are compared, each of which may be off.
    tolerance = 2 * FLOAT32_TOLERANCE
    equal = asked = 0
    worst = 0.0
    for done, text in enumerate(golden.texts, start=1):
        _check_reading(tokenizer, text)
        _require_known(text, model.vocab_size)
        if text.greedy and planes == golden.planes:
            kept = kept_ids(text.ids, model.max_context)
            gaps = _gaps(model, kept, text.greedy)
            equal += int((gaps <= 0).sum())
            asked += len(gaps)
            worst = float(np.maximum(worst, gaps.max()))
            if not worst <= tolerance:
                raise VerificationError(_complaint(text, gaps, tolerance))
        progress("checking golden texts", done, len(golden.texts))
    return GoldenTextCheck(
        texts=len(golden.texts), tokens=sum(len(text.ids) for text in golden.texts),
        greedy=equal, greedy_asked=asked, worst_gap=worst, tolerance=tolerance,
    )  # fmt: skip


def as_messages(text: GoldenText) -> list[Mapping[str, object]]:
    """The messages of a golden conversation as templates take them."""
    return [{"role": one.role, "content": one.content} for one in text.messages]


def _check_reading(tokenizer: Tokenizer, text: GoldenText) -> None:
    """The tokenizer and template that lie here are those of the build."""
    if text.messages:
        try:
            rendered = tokenizer.render_chat(as_messages(text))
        except GenerationError as error:
            raise VerificationError(
                f"The golden conversation {text.name!r} cannot be rendered: {error}"
            ) from error
        if rendered != text.text:
            raise VerificationError(
                f"The chat template makes another text of the golden conversation {text.name!r} "
                "than in the build; get the artifact again, or report the template."
            )
    ids = tokenizer.encode(text.text, add_bos=False if text.messages else None)
    if tuple(ids) != text.ids:
        place = next((place for place, pair in enumerate(zip(ids, text.ids, strict=False))
                      if pair[0] != pair[1]), min(len(ids), len(text.ids)))  # fmt: skip
        raise VerificationError(
            f"The golden text {text.name!r} has other token ids than in the build, from number "
            f"{place} on; get the artifact again, or report the version of tokenizers."
        )


def _require_known(text: GoldenText, vocab_size: int) -> None:
    if max(text.ids) >= vocab_size:
        raise VerificationError(
            f"The tokenizer has the id {max(text.ids)} and the model's vocabulary ends at "
            f"{vocab_size - 1}; tokenizer and weights are of different models."
        )


def _write(model: TokenModel, ids: Sequence[int], count: int) -> tuple[int, ...]:
    """The `count` likeliest tokens behind `ids`, one after another; end tokens do not end it."""
    cache = model.new_cache(len(ids) + max(count, 0))
    chosen: list[int] = []
    step = list(ids)
    while len(chosen) < count:
        (rows,) = model.forward_chunk([Chunk(np.array(step, np.int32), cache, logits="last")])
        if not np.isfinite(rows[-1]).all():
            raise VerificationError(
                "The full model gives logits that are not numbers behind a golden text; the "
                "checkpoint or the build is damaged."
            )
        step = [int(rows[-1].argmax())]
        chosen += step
    return tuple(chosen)


def _gaps(model: TokenModel, ids: Sequence[int], written: Sequence[int]) -> NDArray[np.float64]:
    """By how much the likeliest token is ahead of each of `written`, over the RMS of the logits."""
    if len(ids) + len(written) > model.max_context:
        raise VerificationError(
            f"A golden text and what follows it take {len(ids) + len(written)} tokens and the "
            f"model's context is {model.max_context}; it belongs to another artifact."
        )
    cache = model.new_cache(len(ids) + len(written))
    (last,) = model.forward_chunk([Chunk(np.array(ids, np.int32), cache, logits="last")])
    gaps = [_gap_rows(last, written[:1])]
    for begin in range(0, len(written) - 1, _ROWS):
        part = np.array(written[begin : min(begin + _ROWS, len(written) - 1)], np.int32)
        (rows,) = model.forward_chunk([Chunk(part, cache, logits="all")])
        gaps.append(_gap_rows(rows, written[begin + 1 : begin + 1 + len(part)]))
    return np.concatenate(gaps)


def _gap_rows(logits_NV: NDArray[np.float32], chosen: Sequence[int]) -> NDArray[np.float64]:
    rms_N = np.sqrt(np.mean(np.square(logits_NV, dtype=np.float64), axis=1))
    chosen_N = logits_NV[np.arange(len(chosen)), list(chosen)]
    # A NaN stays one and fails the comparison; among equal logits the first one is written.
    ahead_N = (logits_NV.max(axis=1) - chosen_N) / np.maximum(rms_N, 1e-30)
    gaps_N: NDArray[np.float64] = ahead_N.astype(np.float64)
    return gaps_N


def _complaint(text: GoldenText, gaps: NDArray[np.float64], tolerance: float) -> str:
    place = int(np.flatnonzero(~(gaps <= tolerance))[0])
    return (
        f"Token {place + 1} that the full model writes behind the golden text {text.name!r} is not "
        f"that of the build: another one is ahead by {gaps[place]:.3g} of the RMS of the logits, "
        f"{tolerance:.3g} is allowed. Get the artifact again or rebuild it; if its hashes are "
        "right, report the machine."
    )
