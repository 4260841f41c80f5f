"""`/tokenize` and `/detokenize`: the tokens that a request would have, or a sentence."""

from __future__ import annotations

from typing import Any

import pytest

MESSAGES = [{"role": "user", "content": "A fox"}]


def test_a_conversation_has_the_tokens_of_its_chat(live: Any) -> None:
    found = live.post("/tokenize", messages=MESSAGES).json()
    chat = live.post("/v1/chat/completions", messages=MESSAGES, max_tokens=1).json()
    assert found["count"] == len(found["tokens"]) == chat["usage"]["prompt_tokens"] > 5
    without = live.post("/tokenize", messages=MESSAGES, add_generation_prompt=False).json()
    assert 0 < without["count"] < found["count"]
    assert found["tokens"][: without["count"]] == without["tokens"]


def test_texts_of_tokens(live: Any) -> None:
    found = live.post("/tokenize", content="A fox", return_token_strs=True, model="tiny@b2").json()
    assert "".join(found["token_strs"]) == "A fox"
    assert len(found["token_strs"]) == found["count"]
    assert live.post("/tokenize", prompt="").json()["tokens"] == []
    assert live.post("/detokenize", tokens=[]).json()["prompt"] == ""


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": None}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "a"}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [99_999]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "tiny@d99"}, 404, "model"),
    ],
)
def test_what_cannot_be(live: Any, path: str, body: Any, status: int, param: str) -> None:
    refused = live.post(path, **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


def test_fields_in_vain_are_named(live: Any) -> None:
    answer = live.post("/tokenize", prompt="a", colour=1)
    assert answer.headers["warning"] == '299 pliant "ignored: colour"'
