"""Golden texts are read and written by the same model and tokenizer, and by no others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from pliant.errors import ArtifactError, GenerationError, UsageError, VerificationError
from pliant.evaluate.golden_texts import (
    CONVERSATIONS,
    GREEDY_TOKENS,
    TEXTS,
    GoldenTexts,
    check_golden_texts,
    golden_texts_json,
    read_golden_texts,
    record_golden_texts,
)
from pliant.runtime import Tokenizer
from pliant.runtime.chat import ChatTemplate

TEMPLATE = "{% for one in messages %}<{{ one['role'] }}>{{ one['content'] }}{% endfor %}"
change = msgspec.structs.replace


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    return Tokenizer(
        tokenizer._backend, bos_id=256, chat_template=ChatTemplate({"default": template})
    )


@pytest.fixture
def reader(tokenizer: Tokenizer) -> Tokenizer:
    return with_template(tokenizer, TEMPLATE)


@pytest.fixture
def wide(make_model: Callable[..., Any]) -> Any:
    return make_model(max_context=256)


@pytest.fixture
def golden(wide: Any, reader: Tokenizer) -> GoldenTexts:
    return record_golden_texts(wide, reader, 8)


def artifact_with(content: bytes | None, vocab_size: int = 257) -> Any:
    """What `read_golden_texts` needs of an artifact."""
    from pathlib import Path

    def read_file(name: str, most: int) -> bytes:
        assert name == "golden_texts.json" and content is not None
        if len(content) > most:
            raise ArtifactError("too long")
        return content

    files = {} if content is None else {"golden_texts.json": None}
    return SimpleNamespace(
        path=Path("x.pliant"), manifest=SimpleNamespace(files=files), read_file=read_file,
        spec=SimpleNamespace(vocab_size=vocab_size),
    )  # fmt: skip


def test_what_is_recorded(golden: GoldenTexts, reader: Tokenizer, wide: Any) -> None:
    assert [text.name for text in golden.texts] == [*TEXTS, *CONVERSATIONS]
    by_name = {text.name: text for text in golden.texts}
    assert by_name["dialogue"].text.startswith("<user>Hello!<assistant>Hello. How")
    assert by_name["digits"].ids == tuple(reader.encode(TEXTS["digits"]))
    greedy = by_name["story"].greedy
    assert len(greedy) == GREEDY_TOKENS
    # Each token is the likeliest behind those before it.
    ids = list(by_name["story"].ids)
    for token in greedy[:9]:
        assert token == int(wide.logits_after(ids).argmax())
        ids.append(token)
    assert not golden.left_out and golden.planes == 8


def test_it_is_met_and_survives_a_file(golden: GoldenTexts, reader: Tokenizer, wide: Any) -> None:
    read = read_golden_texts(artifact_with(golden_texts_json(golden)))
    assert read == golden
    calls: list[tuple[str, int, int]] = []
    check = check_golden_texts(wide, reader, golden, 8, lambda *call: calls.append(call))
    assert (check.texts, check.worst_gap) == (7, 0)
    assert check.greedy == check.greedy_asked == 7 * GREEDY_TOKENS
    assert calls[-1][1:] == (7, 7)


def test_other_planes_write_other_texts(golden: GoldenTexts, reader: Tokenizer, wide: Any) -> None:
    assert check_golden_texts(wide, reader, golden, 3).greedy_asked == 0


def test_a_tie_may_go_either_way_and_no_more(
    golden: GoldenTexts, reader: Tokenizer, wide: Any
) -> None:
    noise = np.random.default_rng(1).uniform(-1, 1, wide._bigram.shape).astype(np.float32)
    wide._bigram += 1e-3 * noise
    assert check_golden_texts(wide, reader, golden, 8).worst_gap <= 2 * 2.0**-9
    wide._bigram += noise
    with pytest.raises(VerificationError, match=r"Token \d+ .* not that of the build"):
        check_golden_texts(wide, reader, golden, 8)


def test_another_model_tokenizer_or_template(
    golden: GoldenTexts, reader: Tokenizer, wide: Any, make_model: Callable[..., Any]
) -> None:
    with pytest.raises(VerificationError, match="not that of the build"):
        check_golden_texts(make_model(seed=1, max_context=256), reader, golden, 8)
    wide._bigram[:] = np.nan
    with pytest.raises(VerificationError):
        check_golden_texts(wide, reader, golden, 8)
    with pytest.raises(VerificationError, match="another text of the golden conversation"):
        check_golden_texts(wide, with_template(reader, TEMPLATE + "!"), golden, 3)
    with pytest.raises(VerificationError, match="cannot be rendered"):
        check_golden_texts(wide, with_template(reader, "{{ raise_exception('no') }}"), golden, 3)
    story = golden.texts[0]
    moved = change(golden, texts=(change(story, ids=(*story.ids[:4], 0, *story.ids[5:])),))
    with pytest.raises(VerificationError, match="from number 4 on"):
        check_golden_texts(wide, reader, moved, 3)
    with pytest.raises(VerificationError, match="different models"):
        check_golden_texts(make_model(vocab_size=40), reader, golden, 8)
    with pytest.raises(VerificationError, match="context is 64; it belongs to another"):
        check_golden_texts(make_model(max_context=64), reader, golden, 8)


def test_without_a_template_or_with_one_that_refuses(tokenizer: Tokenizer, model: Any) -> None:
    golden = record_golden_texts(model, tokenizer, 8)
    assert len(golden.texts) == len(TEXTS)
    assert set(golden.left_out) == set(CONVERSATIONS)
    refusing = with_template(tokenizer, "{{ raise_exception('users only') }}")
    reason = record_golden_texts(model, refusing, 8).left_out["dialogue"]
    with pytest.raises(GenerationError) as said:
        refusing.render_chat(CONVERSATIONS["dialogue"])
    assert reason == str(said.value)


def test_short_contexts_leave_room_for_what_is_written(
    reader: Tokenizer, make_model: Callable[..., Any]
) -> None:
    small = make_model(max_context=9)
    golden = record_golden_texts(small, reader, 8)
    assert {len(text.greedy) for text in golden.texts} == {5}
    check_golden_texts(small, reader, golden, 8)
    tiny = make_model(max_context=1)
    golden = record_golden_texts(tiny, reader, 8)
    assert {len(text.greedy) for text in golden.texts} == {0}
    assert check_golden_texts(tiny, reader, golden, 8).greedy_asked == 0


def test_a_model_without_numbers_is_not_recorded(reader: Tokenizer, model: Any) -> None:
    model._past[:] = np.inf
    with pytest.raises(VerificationError, match="not numbers"):
        record_golden_texts(model, reader, 8)


def test_older_artifacts_have_none() -> None:
    assert read_golden_texts(artifact_with(None)) is None


TEXT = {"name": "a", "text": "x", "ids": [1], "greedy": [2]}
GOOD = {"planes": 8, "texts": [TEXT]}


@pytest.mark.parametrize(
    "content",
    [
        *({**GOOD, "texts": [{**TEXT, **more}]} for more in (
            {"ids": []}, {"ids": [-1]}, {"ids": [257]}, {"ids": [1 << 40]}, {"greedy": [257]},
            {"greedy": [1] * 1025}, {"ids": [1] * 65537}, {"text": "x" * 65537}, {"name": "../x"},
            {"name": ""}, {"more": 1}, {"messages": [{"role": "r" * 65, "content": ""}]},
            {"messages": [{"role": "user"}]}, {"messages": [{"role": "u", "content": ""}] * 65},
        )),
        {**GOOD, "texts": [TEXT, TEXT]}, {**GOOD, "texts": [TEXT] * 65}, {**GOOD, "planes": 0},
        {**GOOD, "more": 1}, {"texts": []}, [], {**GOOD, "left_out": {"a\n": "x"}},
    ],
    ids=lambda content: str(content)[:60],
)  # fmt: skip
def test_files_of_strangers(content: Any) -> None:
    assert read_golden_texts(artifact_with(msgspec.json.encode(GOOD))) is not None
    with pytest.raises(ArtifactError, match=r"golden_texts\.json|golden texts"):
        read_golden_texts(artifact_with(msgspec.json.encode(content)))


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 99999, b"\xff", b'{"texts": [{"text": "\xff"}]}', b" " * ((4 << 20) + 1)],
    ids=len,
)
def test_files_that_are_none(content: bytes) -> None:
    with pytest.raises((ArtifactError, UsageError)):
        read_golden_texts(artifact_with(content))
