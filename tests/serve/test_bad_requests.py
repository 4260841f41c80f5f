"""Whatever comes in, a sentence goes out: malformed bodies, keys, sizes, rates, load."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from pliant.errors import UsageError
from pliant.serve.api.errors import ApiError
from pliant.serve.safety import GuardLimits, Keys, RateLimit
from pliant.serve.server import ServeOptions, listen

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SAID = [{"role": "user", "content": "a"}]

#: Path, body, and the field that the error names.
CORPUS: list[tuple[str, Any, str | None]] = [
    (TEXT, b"", None),
    (TEXT, b"{", None),
    (TEXT, b"\xff\xfe", None),
    (TEXT, b"[1, 2]", None),
    (TEXT, b'"text"', None),
    (TEXT, b"[" * 5_000, None),
    (TEXT, {"prompt": "a", "metadata": json.loads("[" * 90 + "]" * 90)}, None),
    (TEXT, b'{"prompt": "\\ud800", "max_tokens": 1}', None),
    (TEXT, {"prompt": {"text": "a"}}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [["a"]]}, "prompt"),
    (TEXT, {"prompt": [1, "a"]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt"),
    (TEXT, {"prompt": [10**12]}, "prompt"),
    (TEXT, {"prompt": [9_999]}, "prompt"),
    (TEXT, {"prompt": ["a"] * 65}, "prompt"),
    (TEXT, {"prompt": "a", "max_tokens": -1}, "max_tokens"),
    (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    (TEXT, {"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
    (TEXT, {"prompt": "a", "max_tokens": True}, "max_tokens"),
    (TEXT, {"prompt": "a", "max_tokens": 10**30}, "max_tokens"),
    (TEXT, {"prompt": "a", "temperature": -0.1}, "temperature"),
    (TEXT, {"prompt": "a", "temperature": "hot"}, "temperature"),
    (TEXT, b'{"prompt": "a", "temperature": NaN}', None),
    (TEXT, b'{"prompt": "a", "temperature": 1e999}', None),
    (TEXT, {"prompt": "a", "top_p": 2}, "top_p"),
    (TEXT, {"prompt": "a", "top_k": -2}, "top_k"),
    (TEXT, {"prompt": "a", "min_p": 1.1}, "min_p"),
    (TEXT, {"prompt": "a", "n": 0}, "n"),
    (TEXT, {"prompt": "a", "n": 17}, "n"),
    (TEXT, {"prompt": "a", "best_of": 3}, "best_of"),
    (TEXT, {"prompt": "a", "suffix": "z"}, "suffix"),
    (TEXT, {"prompt": "a", "stop": ""}, "stop"),
    (TEXT, {"prompt": "a", "stop": [1]}, "stop"),
    (TEXT, {"prompt": "a", "stop": ["x"] * 17}, "stop"),
    (TEXT, {"prompt": "a", "seed": 0.5}, "seed"),
    (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs"),
    (TEXT, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    (TEXT, {"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
    (TEXT, {"prompt": "a", "logit_bias": {"9999": 1}}, "logit_bias"),
    (TEXT, {"prompt": "a", "logit_bias": [1]}, "logit_bias"),
    (TEXT, {"prompt": "a", "presence_penalty": 3}, "presence_penalty"),
    (TEXT, {"prompt": "a", "stream": "yes"}, "stream"),
    (TEXT, {"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
    (TEXT, {"prompt": "a", "stream": True, "stream_options": 1}, "stream_options"),
    (TEXT, {"prompt": "a", "model": 3}, "model"),
    (TEXT, {"prompt": "a", "model": "tiny@../../etc"}, "model"),
    (TEXT, {"prompt": "a", "pliant": {"speed": 1}}, "pliant"),
    (TEXT, {"prompt": "a", "pliant": {"prefer": "both"}}, "pliant.prefer"),
    (TEXT, {"prompt": "a", "model": "tiny@auto", "pliant": {"smallest": "x!"}}, "model"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": ["hello"]}, "messages[0]"),
    (CHAT, {"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[0].content"),
    (CHAT, {"messages": SAID, "top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"messages": SAID, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    (CHAT, {"messages": SAID, "tools": [{"type": "magic"}]}, "tools[0]"),
    (CHAT, {"messages": SAID, "tools": [{"type": "function", "function": {}}]}, "tools[0]"),
    (CHAT, {"messages": SAID, "tool_choice": "required"}, "tool_choice"),
    (CHAT, {"messages": SAID, "tool_choice": {"function": {"name": "x"}}}, "tool_choice"),
    (CHAT, {"messages": SAID, "response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {"messages": SAID, "response_format": {"type": "json_schema"}}, "response_format"),
    (CHAT, {"messages": SAID, "response_format": {"type": "json_schema", "json_schema": {
        "schema": {"type": "unheard of"}}}}, None),
    (CHAT, {"messages": SAID, "chat_template_kwargs": 3}, "chat_template_kwargs"),
    ("/tokenize", {"prompt": 3}, "prompt"),
    ("/detokenize", {"tokens": [-5]}, "tokens"),
    ("/detokenize", {"tokens": "abc"}, "tokens"),
]  # fmt: skip


def test_every_malformed_body_is_answered_with_a_sentence(live: Any) -> None:
    for path, body, param in CORPUS:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = live.http.post(path, content=content)
        assert 400 <= response.status_code < 500, (path, body, response.text)
        error = response.json()["error"]
        assert error["message"].endswith((".", "!")) and len(error["message"]) < 600
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param, (path, body, error)
    live.wait_idle()
    assert live.service.room.is_alive


def test_paths_and_methods_that_are_not(live: Any) -> None:
    for method, path, status in (("GET", "/v2", 404), ("GET", TEXT, 405), ("POST", "/health", 405),
                                 ("GET", "/../../etc/passwd", 404)):  # fmt: skip
        response = live.http.request(method, path)
        assert (response.status_code, "message" in response.json()["error"]) == (status, True)


def test_small_routes(live: Any) -> None:
    assert live.http.get("/health").json() == {"status": "ok"}
    tokens = live.post("/tokenize", prompt="A fox").json()
    assert tokens["count"] == len(tokens["tokens"]) == 5
    assert live.post("/detokenize", tokens=tokens["tokens"]).json()["prompt"] == "A fox"
    subnets = live.http.get("/v1/subnets").json()
    assert subnets["planes"] == 8 and subnets["subnets"][0]["id"] == "tiny"
    page = live.http.get("/")
    assert "<title>pliant</title>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers


def test_metrics_have_the_names_that_dashboards_know(live: Any) -> None:
    live.post(TEXT, prompt="a", max_tokens=4)
    page = live.http.get("/metrics").text
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting",
                 "vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total",
                 "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket",
                 "vllm:inter_token_latency_seconds_bucket", "vllm:request_success_total",
                 "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total",
                 "vllm:e2e_request_latency_seconds_bucket", "pliant:fluidity_index_bucket",
                 "pliant:kv_cache_bytes", "pliant:requests_total"):  # fmt: skip
        assert f"{name}{{" in page, name


def test_a_client_that_goes_away_frees_its_place(live: Any) -> None:
    with live.http.stream(
        "POST", TEXT, json={"prompt": "a", "max_tokens": 120, "stream": True, "ignore_eos": True}
    ) as response:
        next(response.iter_lines())
    live.wait_idle()


def test_each_cut_has_the_cache_of_its_plan(serve: Any) -> None:
    own, told = serve(), serve(cache_type="int8")
    for server, caches in ((own, ("float16", "int4 behind the last 64 tokens")),
                           (told, ("int8", "int8"))):  # fmt: skip
        described = [server.service.subnets.describe(cut) for cut in ("", "b4-k4")]
        assert tuple(one["cache"] for one in described) == caches
        answer = server.post(TEXT, model="tiny@b4-k4", prompt="A fox", max_tokens=3)
        assert answer.status_code == 200
        (engine,) = (server.service.subnets._open[cut] for cut in ("b4-k4",))
        assert str(engine.engine.cache_format) == caches[1]


def test_several_subnets_at_once(live: Any) -> None:
    for cut in ("b2", "d2", "d3-w0.5-b4"):
        answer = live.post(TEXT, model=f"tiny@{cut}", prompt="a", max_tokens=2)
        assert answer.json()["model"] == answer.headers["x-pliant-subnet"] == f"tiny@{cut}"


def test_an_idle_subnet_gives_way_and_busy_ones_do_not(serve: Any) -> None:
    own = serve(max_subnets=1)
    for cut in ("b2", "b3", "b2"):
        assert own.post(TEXT, model=f"tiny@{cut}", prompt="a", max_tokens=2).status_code == 200
    busy = {"model": "tiny@b2", "prompt": "a", "max_tokens": 128, "stream": True,
            "ignore_eos": True}  # fmt: skip
    own.slow_down(0.05)
    with own.http.stream("POST", TEXT, json=busy) as response:
        next(response.iter_lines())
        refused = own.post(TEXT, model="tiny@b3", prompt="a", max_tokens=2)
        assert refused.status_code == 503 and "tiny@b2" in refused.json()["error"]["message"]


def test_auto_goes_down_under_load_as_far_as_the_client_allows(serve: Any) -> None:
    subnets = serve(auto_cuts=("", "b4", "b2")).service.subnets

    def cut(waiting: int, smallest: str | None = None, prefer: str = "") -> str:
        return str(subnets.resolve("tiny@auto", waiting, smallest=smallest, prefer=prefer))

    assert [cut(waiting) for waiting in range(5)] == ["", "b4", "b2", "b2", "b2"]
    assert cut(9, smallest="b4") == "b4"
    assert cut(0, prefer="latency") == "b2"
    assert [cut(9, smallest, "quality") for smallest in (None, "b4")] == ["", "b4"]
    assert subnets.resolve("", 9) == ""
    assert subnets.names() == ["tiny", "tiny@b4", "tiny@b2", "tiny@auto"]


def test_a_default_cut_and_the_whole(serve: Any) -> None:
    own = serve(default_cut="b2")
    for name, ran in (("tiny", "tiny@b2"), ("", "tiny@b2"), ("tiny@full", "tiny@full")):
        assert own.post(TEXT, model=name, prompt="a", max_tokens=1).json()["model"] == ran
    assert own.service.subnets.names() == ["tiny", "tiny@b2", "tiny@full", "tiny@auto"]


def test_too_much_is_refused_with_a_time_to_come_back(serve: Any) -> None:
    own = serve(max_waiting=2, max_sequences=1)
    refused = own.post(TEXT, prompt=["a", "b", "c", "d", "e"], max_tokens=100)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "server_overloaded"
    own.wait_idle()
    assert own.post(TEXT, prompt="a", max_tokens=1).status_code == 200


def test_a_deadline_of_the_request(serve: Any) -> None:
    own = serve(max_sequences=1)
    late = own.post(TEXT, prompt="a", max_tokens=100, ignore_eos=True,
                    pliant={"timeout_seconds": 1e-6})  # fmt: skip
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"


def test_keys(serve: Any) -> None:
    own = serve(Keys(["ann:secret-of-ann", "secret-of-nobody"]))
    for key in ("secret-of-ann", "secret-of-nobody"):
        assert own.client(key).models.list().data
    for key in ("secret-of-an", "ann", "ann:secret-of-ann", ""):
        with pytest.raises(openai.AuthenticationError, match="Bearer"):
            own.client(key or "x").models.list()
    assert own.http.get("/health").status_code == 200
    assert own.http.get("/metrics").status_code == 401
    wrong = own.http.get("/v1/models", headers={"Authorization": "Basic secret-of-ann"})
    assert wrong.status_code == 401 and wrong.headers["www-authenticate"] == "Bearer"


def test_keys_from_a_file_and_what_cannot_be_one(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the house\nann:secret-of-ann\nbob : secret-of-bob\n\n")
    keys = Keys.read(path, "from-environment")
    assert keys.client("Bearer secret-of-ann") == "ann"
    assert keys.client("Bearer secret-of-bob") == "bob"
    assert keys.client("bearer from-environment") == "key-0"
    path.write_text("  # of the house\n ann : secret of ann \n\tschl\u00fcssel-der-anna", "utf-8")
    keys = Keys.read(path, None)
    assert keys.client("Bearer secret of ann") == "ann"
    # Headers come as bytes, which servers read one by one.
    assert keys.client("Bearer schl\u00fcssel-der-anna".encode().decode("latin-1")) == "key-1"
    path.write_text("# none\n")
    for lines in (lambda: Keys(["short"]), lambda: Keys.read(path, None),
                  lambda: Keys.read(tmp_path / "none", None)):  # fmt: skip
        with pytest.raises(UsageError):
            lines()


def test_sizes_and_slow_bodies(serve: Any) -> None:
    own = serve(guard=GuardLimits(body_bytes=1_000, body_seconds=0.2))
    assert own.post(TEXT, prompt="a" * 2_000).status_code == 413
    chunked = own.http.post(TEXT, content=iter([b"a" * 600] * 3))
    assert chunked.status_code == 413
    address = own.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in raw.recv(4_000).split(b"\r\n")[0]


def test_headers_that_do_not_come(serve: Any) -> None:
    """Each byte of them does not give more time; a connection that answers is left alone."""
    own = serve(guard=GuardLimits(header_seconds=0.3))
    address = own.url.removeprefix("http://").split(":")
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for before in (b"", whole):
        with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
            if before:
                raw.sendall(before)
                said = b""
                while b'"ok"' not in said:
                    said += raw.recv(4_000)
            answer = b""
            for place in range(100):
                # The server may close between two bytes, which sending notices first.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    raw.sendall(whole[place : place + 1] if place < 30 else b"")
                raw.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    answer += raw.recv(4_000)
                if answer:
                    break
            assert b" 408 " in answer.split(b"\r\n")[0]
    asked = {"prompt": "a", "max_tokens": 100, "stream": True, "ignore_eos": True}
    with own.http.stream("POST", TEXT, json=asked) as response:
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_rates() -> None:
    now = [0.0]
    rate = RateLimit(3, clock=lambda: now[0])
    for _ in range(3):
        rate.take("ann")
    with pytest.raises(ApiError, match="try again in") as refusal:
        rate.take("ann")
    rate.take("ben")
    now[0] += int(refusal.value.headers["Retry-After"])
    rate.take("ann")
    RateLimit(0).take("ann")


def test_a_rate_over_http(serve: Any) -> None:
    own = serve(guard=GuardLimits(requests_per_minute=1))
    assert own.post("/tokenize", prompt="a").status_code == 200
    refused = own.post("/tokenize", prompt="a")
    assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"


def test_where_it_may_listen() -> None:
    keys = Keys(["long-enough"])
    for host in ("0.0.0.0", "::", "example.org"):
        with pytest.raises(UsageError, match="--keys"):
            ServeOptions(name="x", host=host).check(Keys([]))
        ServeOptions(name="x", host=host).check(keys)
    for host in ("127.0.0.1", "::1", "localhost"):
        ServeOptions(name="x", host=host).check(Keys([]))
    with listen("127.0.0.1", 0) as bound, pytest.raises(UsageError, match="--port"):
        listen("127.0.0.1", bound.getsockname()[1])


def test_a_stream_that_waits_is_kept_alive(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment each time nothing comes, and the text whole behind them."""
    from pliant.serve import event_stream

    monkeypatch.setattr(event_stream.EventStream.__init__, "__defaults__", (0.05,))
    own = serve()
    own.slow_down(0.2)
    body = {"prompt": "a", "max_tokens": 2, "stream": True, "ignore_eos": True}
    with own.http.stream("POST", TEXT, json=body) as response:
        lines = list(response.iter_lines())
    assert ": keep-alive" in lines and lines[-2] == "data: [DONE]"


def test_a_failure_within_a_stream_is_an_event(serve: Any) -> None:
    own = serve()
    own.fail_at(5)
    body = {"prompt": "a", "max_tokens": 9, "stream": True, "ignore_eos": True}
    with own.http.stream("POST", TEXT, json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.status_code == 200
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert own.post(TEXT, prompt="a", max_tokens=2).status_code == 200


def test_the_dashboard_asks_for_metrics_that_exist(live: Any) -> None:
    import re

    live.post(TEXT, prompt="a", max_tokens=2)
    live.post(TEXT, prompt=3)
    page = live.http.get("/metrics").text
    board = Path(__file__).parents[2] / "docs" / "how_to" / "serve_dashboard.json"
    if not board.exists():
        pytest.skip("the documentation is not part of an installed package")
    names = set(re.findall(r"(?:vllm|pliant):\w+", board.read_text()))
    declared = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    for name in names:
        assert name in declared or re.sub(r"_(bucket|count)$", "", name) in declared, name
