"""Which subnet runs: names, wishes, and what happens where one cannot be opened."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pliant.errors import OutOfSpaceError

TEXT = "/v1/completions"


def test_the_whole_has_a_name_among_the_automatic_ones(serve: Any) -> None:
    own = serve(default_cut="b4", auto_cuts=("full", "b2"))
    assert own.http.get("/v1/subnets").json()["auto"] == ["tiny@full", "tiny@b2"]
    answer = own.post(TEXT, model="tiny@auto", prompt="a", max_tokens=1)
    assert answer.json()["model"] == answer.headers["x-pliant-subnet"] == "tiny@full"


def test_auto_takes_another_where_its_own_cannot_be_opened(serve: Any) -> None:
    """A full house is no reason to refuse a client who said that any of them will do."""
    own = serve(auto_cuts=("full", "b4", "b2"), max_subnets=1)
    subnets = own.service.subnets
    assert own.post(TEXT, model="tiny@b2", prompt="a", max_tokens=1).status_code == 200
    subnets._pins["b2"] += 1
    try:
        answer = own.post(TEXT, model="tiny@auto", prompt="a", max_tokens=1)
        assert answer.json()["model"] == "tiny@b2"
        held = own.post(TEXT, model="tiny@auto", prompt="a", max_tokens=1,
                        pliant={"smallest": "b4"})  # fmt: skip
        assert held.status_code == 503
        assert held.json()["error"]["code"] == "subnets_in_use"
        assert int(held.headers["retry-after"]) > 0
    finally:
        subnets._pins["b2"] -= 1


def test_under_pressure_a_smaller_cut_answers_and_says_so(serve: Any) -> None:
    own = serve(auto_cuts=("full", "b4", "b2"), max_sequences=1)
    own.slow_down(0.02)

    def ask(tokens: int = 1, **wishes: Any) -> Any:
        return own.post(TEXT, model="tiny@auto", prompt="a", max_tokens=tokens, ignore_eos=True,
                        pliant=wishes)  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask, 60, prefer="quality") for _ in range(2)]
        end = time.monotonic() + 20
        while own.service.full_lines() < 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        pressed = [ask(), ask(smallest="full"), ask(prefer="latency"), ask(prefer="quality")]
    said = [answer.json()["model"] for answer in pressed]
    assert said == ["tiny@b4", "tiny", "tiny@b2", "tiny"]
    assert said == [answer.headers["x-pliant-subnet"] for answer in pressed]
    assert [one.result().json()["model"] for one in running] == ["tiny", "tiny"]
    assert ask().json()["model"] == "tiny"


def test_a_subnet_that_does_not_fit(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = serve()

    def full(*given: Any, **options: Any) -> Any:
        raise OutOfSpaceError("There are 3 bytes left.")

    monkeypatch.setattr(own.service.subnets.model, "engine", full)
    refused = own.post(TEXT, model="tiny@b3", prompt="a", max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["message"] == "There are 3 bytes left."
    assert own.http.get("/health").status_code == 200


def test_models_behind_a_slash_are_the_list(live: Any) -> None:
    for path in ("/v1/models", "/v1/models/"):
        assert live.http.get(path).json()["object"] == "list"


def test_refusals_do_not_say_where_files_lie(live: Any) -> None:
    refused = live.post(TEXT, model="tiny@nonsense", prompt="a").json()["error"]["message"]
    assert "tiny has no cut 'nonsense'" in refused
    assert str(live.model.artifact.path) not in refused
