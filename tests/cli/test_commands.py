"""Each command on a small artifact, end to end; random weights, so figures only have to agree."""

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_inspect_tells_the_artifact_and_a_subnet(pliant: Run, pristine: Path) -> None:
    data = pliant("inspect", f"{pristine}@d2-w0.5-b3", "--json").data
    assert data["artifact"]["depths"] == {"3": [0, 1, 2], "2": [0, 2], "1": [0]}
    assert data["artifact"]["num_bytes"] > data["subnet"]["weight_bytes"]
    assert data["subnet"]["blocks"] == [0, 2]
    assert data["subnet"]["groups"] == [1, 1]
    parts = ("weight_bytes", "cache_bytes", "scratch_bytes")
    assert data["subnet"]["memory_bytes"] == sum(data["subnet"][part] for part in parts)
    text = pliant("inspect", f"{pristine}@d2-w0.5-b3").out
    assert "loss of one axis cut alone" in text
    assert "1 KV groups" in text


def test_cut_writes_only_a_subnet(pliant: Run, artifact: Path) -> None:
    before = {path for path in artifact.rglob("*") if path.is_file()}
    ran = pliant(
        "cut", artifact, "--depth", 2, "--width", 0.5, "--bits", 3, "--name", "mini", "--json"
    )
    assert ran.code == 0
    after = {path for path in artifact.rglob("*") if path.is_file()}
    assert {path.name for path in after - before} == {"mini.json"}
    assert ran.data["address"] == f"{artifact}@mini"
    assert ran.data["blocks"] == [0, 2]
    shown = pliant("inspect", f"{artifact}@mini", "--json").data
    assert shown["subnet"]["weight_bytes"] == ran.data["weight_bytes"]
    assert shown["artifact"]["cuts"] == ["mini"]


def test_cut_names_itself_after_its_address(pliant: Run, artifact: Path) -> None:
    ran = pliant("cut", artifact, "--bits", 3, "--vocabulary-bits", 6, "--json")
    assert ran.data["address"] == f"{artifact}@cut-b3-e6"
    assert (artifact / "subnets" / "cut-b3-e6.json").exists()


def test_a_dry_cut_writes_nothing(pliant: Run, artifact: Path) -> None:
    ran = pliant("cut", artifact, "--bits", 3, "--dry-run", "--json")
    assert ran.data["saved"] is False
    assert not (artifact / "subnets").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--bits", 9], "1 to 8"), (["--depth", 7], "7 blocks"), (["--width", 1.5], "up to 1"),
     (["--width", 0], "above 0"), (["--bits", 3, "--name", "a/b"], "a/b"),
     (["--bits", 3, "--name", "d2-b3"], "d2-b3")],
)  # fmt: skip
def test_cuts_that_cannot_be(pliant: Run, artifact: Path, flags: list[object], says: str) -> None:
    ran = pliant("cut", artifact, *flags)
    assert ran.code == 2
    assert says in ran.err
    assert not (artifact / "subnets").exists()


def test_unknown_cuts_are_refused_with_those_that_exist(pliant: Run, artifact: Path) -> None:
    pliant("cut", artifact, "--bits", 3, "--name", "mini")
    ran = pliant("run", f"{artifact}@maxi", "a")
    assert ran.code == 2
    assert "mini" in ran.err


def test_eval_prints_its_figures(pliant: Run, pristine: Path, text_file: Path) -> None:
    data = pliant("eval", f"{pristine}@b4", "--text", text_file, "--threads", 1, "--json").data
    bytes_of_text = len(text_file.read_bytes())
    assert data["bytes"] == bytes_of_text == data["tokens"]
    # The tokenizer's tokens are bytes, so both are the same number in other units.
    assert data["bits_per_byte"] == pytest.approx(data["nats_per_token"] / math.log(2))
    assert data["perplexity"] == pytest.approx(math.exp(data["nats_per_token"]))
    assert data["kl_nats"] > 0
    assert 0 < data["top1_agreement"] <= 1


def test_eval_of_the_full_model_agrees_with_itself(
    pliant: Run, pristine: Path, text_file: Path
) -> None:
    data = pliant("eval", pristine, "--text", text_file, "--threads", 1, "--json").data
    assert data["kl_nats"] == 0
    assert data["top1_agreement"] == 1


def test_eval_reads_only_what_it_is_allowed(pliant: Run, pristine: Path, text_file: Path) -> None:
    flags = ("--limit", "100", "--window", 50, "--stride", 25, "--no-reference", "--threads", 1)
    data = pliant("eval", pristine, "--text", text_file, *flags, "--json").data
    assert 97 <= data["bytes"] <= 100
    assert (data["window"], data["stride"]) == (50, 25)
    assert data["kl_nats"] is None


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no text"), (b"  \n\n ", "no text"), (b"caf\xe9", "not UTF-8"), (None, "cannot read")],
)
def test_texts_that_cannot_be_used(
    pliant: Run, pristine: Path, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    ran = pliant("eval", pristine, "--text", path)
    assert ran.code == 1
    assert says in ran.err


def test_fit_finds_what_fits(pliant: Run, artifact: Path, text_file: Path) -> None:
    full = pliant("inspect", artifact, "--json").data["subnet"]["memory_bytes"]
    budget = int(0.6 * full)
    ran = pliant(
        "fit", artifact, "--memory", budget, "--text", text_file, "--limit", "500",
        "--name", "fits", "--threads", 1, "--json",
    )  # fmt: skip
    assert ran.code == 0
    data = ran.data
    assert data["chosen"]["memory_bytes"] <= budget
    assert len(data["verified"]) >= 3
    assert data["chosen"]["bits_per_byte"] == min(
        item["bits_per_byte"] for item in data["verified"]
    )
    assert data["baseline"]["dense"] if "dense" in data["baseline"] else data["baseline"]["cut"]
    assert any(item["dense"] for item in data["verified"])
    sizes = [item["memory_bytes"] for item in data["frontier"]]
    losses = [item["predicted_increase"] for item in data["frontier"]]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    shown = pliant("inspect", f"{artifact}@fits", "--json").data
    assert shown["subnet"]["memory_bytes"] == data["chosen"]["memory_bytes"]


def test_fit_prints_the_frontier_with_the_dense_baseline(
    pliant: Run, artifact: Path, text_file: Path
) -> None:
    ran = pliant("fit", artifact, "--memory", "120kB", "--text", text_file, "--limit", "300")
    assert ran.code == 0
    assert "chosen" in ran.out
    assert "dense at fewer bits" in ran.out
    assert "fits 120 kB" in ran.out
    assert not (artifact / "subnets").exists()


def test_a_longer_context_costs_memory(pliant: Run, pristine: Path) -> None:
    flags = ("--memory", "1MB", "--dry-run", "--json")
    short = pliant("fit", pristine, "--context", 8, *flags).data["best_predicted"]
    long = pliant("fit", pristine, "--context", 256, *flags).data["best_predicted"]
    assert long["cache_bytes"] == 32 * short["cache_bytes"]


def test_nothing_fits_is_code_3_with_the_smallest(pliant: Run, pristine: Path) -> None:
    ran = pliant("fit", pristine, "--memory", "1kB")
    assert ran.code == 3
    assert "smallest that exists is d1-w0.5-b1-e2" in ran.err


def test_a_missed_floor_is_code_4(
    pliant: Run, artifact: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pliant.evaluate import TextLoss

    full = pliant("inspect", artifact, "--json").data["subnet"]["weight_bytes"]

    def loss(_: object, subnet: Any, *__: object) -> TextLoss:
        """A tenth more loss for everything but the full model."""
        nats = 100.0 if subnet.weight_bytes == full else 110.0
        return TextLoss(nats=nats, tokens=50, num_bytes=100, window=8, stride=8)

    monkeypatch.setattr("pliant.recipes.study.text_loss", loss)
    flags = ("--memory", "120kB", "--text", text_file, "--name", "tenth")
    ran = pliant("fit", artifact, *flags, "--max-loss", "+5%")
    assert ran.code == 4
    assert "loses +10.00% and +5.00% was allowed" in ran.err
    assert not (artifact / "subnets").exists()
    assert pliant("fit", artifact, *flags, "--max-loss", "+11%").code == 0
    assert (artifact / "subnets" / "tenth.json").exists()


def test_run_writes_prompt_and_text_and_repeats_itself(pliant: Run, pristine: Path) -> None:
    flags = ("--max-tokens", 12, "--seed", 3, "--threads", 1)
    ran = pliant("run", f"{pristine}@b4", "Once", *flags)
    assert ran.code == 0
    assert ran.out.startswith("Once")
    assert "token/s" in ran.err
    data = pliant("run", f"{pristine}@b4", "Once", *flags, "--json").data
    assert "Once" + data["text"] + "\n" == ran.out
    assert data["tokens"] <= 12
    other = pliant("run", f"{pristine}@b4", "Once", *flags[:2], "--seed", 4, "--json").data
    assert other["text"] != data["text"]


def test_run_reads_a_prompt_from_stdin(
    pliant: Run, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Café".encode())))
    ran = pliant("run", pristine, "-", "--max-tokens", 2, "--quiet")
    assert ran.out.startswith("Café")
    assert ran.err == ""


@pytest.mark.parametrize(
    ("prompt", "flags", "says"),
    [("x" * 300, [], "context is 256"), ("", [], "empty"), ("a\udce9", [], "not UTF-8"),
     ("a", ["--temperature", "nan"], "temperature"), ("a", ["--top-p", "1.5"], "top_p")],
)  # fmt: skip
def test_prompts_and_options_that_cannot_be(
    pliant: Run, pristine: Path, prompt: str, flags: list[str], says: str
) -> None:
    ran = pliant("run", pristine, prompt, *flags)
    assert ran.code in (1, 2)
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_chat_answers_every_line(
    pliant: Run, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAnd you?\n"))
    ran = pliant("chat", pristine, "--max-tokens", 5, "--threads", 1, "--json")
    assert ran.code == 0
    answers = [json.loads(line) for line in ran.out.splitlines()]
    assert len(answers) == 2
    assert answers[1]["prompt_tokens"] > answers[0]["prompt_tokens"]


def test_chat_switches_its_cut(
    pliant: Run, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line `/switch` is no message; a cut that is none leaves the talk as it was."""
    lines = "Hello\n/switch b2\nHello again\n/switch b99\n/switch\nBye\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    ran = pliant("chat", pristine, "--max-tokens", 3, "--threads", 1, "--json")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 3
    assert "switched to b2" in ran.err
    assert "The talk goes on with the cut it had" in ran.err
    assert "switched to the full model" in ran.err


def test_verify_accepts_what_was_built(pliant: Run, pristine: Path) -> None:
    data = pliant("verify", pristine, "--json").data
    assert data["verified"]
    assert data["golden"][0]["bitwise"]
    assert pliant("verify", pristine, "--shallow", "--json").data["golden"] == []


def test_verify_finds_a_changed_bit(pliant: Run, artifact: Path) -> None:
    path = artifact / "plane-3.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    ran = pliant("verify", artifact)
    assert ran.code == 6
    assert "plane-3.safetensors" in ran.err
