"""The pages of `docs/how_to` are run as they are written, on a tiny model.

Every `pliant` line of every page must be one that the program understands. The pages on other
engines, files, the hub and the report are run whole, in order; what is left out says why.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.cli.program import app

PAGES = Path(__file__).parents[2] / "docs" / "how_to"
PEER_PYTHON = os.environ.get("PLIANT_PEER_PYTHON", "")
#: The tiny model has three blocks and contexts of 256; the pages speak of larger ones.
SMALLER = {"d8-": "d2-", "model.pliant": "X.pliant", "tale.pliant": "X.pliant"}
Run = Callable[..., Any]


def shell_lines(page: str) -> list[str]:
    """The commands of a page: lines of its indented and `sh` blocks, continued ones joined."""
    text = (PAGES / page).read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = [
        block for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S) if kind == "sh"
    ]
    plain = re.sub(r"```.*?```", "", text, flags=re.S)
    lines = [line[4:] for line in plain.splitlines() if line.startswith("    ")]
    lines += [line for block in fenced for line in block.splitlines()]
    return [line.strip() for line in lines if line.strip()]


def python_blocks(page: str) -> list[str]:
    text = (PAGES / page).read_text(encoding="utf-8")
    return [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S)
            if kind == "python"]  # fmt: skip


def words_of(line: str) -> list[str]:
    for larger, smaller in SMALLER.items():
        line = line.replace(larger, smaller)
    return shlex.split(line, comments=True)


ALL = sorted(path.name for path in PAGES.glob("*.md"))
COMMANDS = [(page, line) for page in ALL for line in shell_lines(page) if line.startswith("pliant")]


def test_every_page_has_commands_and_none_of_an_unknown_kind() -> None:
    known = (
        "pliant ", "pip install ", "python -m pliant.lm_eval ", "lm_eval --model local-completions",
        "export ", "hf auth login",
    )  # fmt: skip
    for page in ALL:
        lines = shell_lines(page)
        assert lines or python_blocks(page), page
        for line in lines:
            assert line.startswith(known), f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_the_program_understands(page: str, line: str) -> None:
    """Names, options and values are parsed; nothing is run."""
    from typer.main import get_command

    group: Any = get_command(app)
    _, name, *rest = shlex.split(re.sub(r"…|> .*", "", line), comments=True)
    command = group.get_command(group.make_context("pliant", [name]), name)
    assert command is not None, f"{page}: there is no `pliant {name}`"
    command.make_context(name, rest)


@pytest.fixture
def place(artifact: Path, tmp_path: Path, text_file: Path, monkeypatch: Any) -> Path:
    """A folder to work in, with an artifact that has the saved cut `phone`, and a text."""
    from pliant.artifact import Artifact

    folder = tmp_path / "work"
    folder.mkdir()
    artifact.rename(folder / "X.pliant")
    opened = Artifact.open(folder / "X.pliant")
    opened.save_subnet("phone", opened.subnet("d2-b3-e3"))
    shutil.copy(text_file, folder / "heldout.txt")
    monkeypatch.chdir(folder)
    return folder


def run_page(page: str, pliant: Run, *, skip: Callable[[list[str]], bool] = lambda _: False) -> int:
    """Run the `pliant` lines of a page in order; how many were run."""
    count = 0
    for line in shell_lines(page):
        words = words_of(line)
        if words[0] != "pliant" or skip(words):
            continue
        ran = pliant(*words[1:])
        assert ran.code == 0, f"{line}: {ran.err}"
        count += 1
    return count


def test_export_to_transformers(pliant: Run, place: Path, engine_here: None) -> None:
    assert run_page("export_to_transformers.md", pliant) == 6
    assert (place / "small" / "model.safetensors").is_file() and not (place / "full").exists()
    for block in python_blocks("export_to_transformers.md"):
        exec(block, {})


def test_export_to_llama_cpp(pliant: Run, place: Path, monkeypatch: Any) -> None:
    pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    if not PEER_PYTHON:
        monkeypatch.setenv("PLIANT_VERIFY", "0")
    # Without llama.cpp files are written and not compared.
    ran = run_page(
        "export_to_llama_cpp.md",
        pliant,
        skip=lambda words: words[1] == "verify" and not PEER_PYTHON,
    )
    assert ran >= 3 and (place / "four.gguf").read_bytes()[:4] == b"GGUF"
    assert not (place / "full.gguf").exists()


def test_use_in_transformers(place: Path, capfd: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    (block,) = python_blocks("use_in_transformers.md")
    exec(block.replace("d8-", "d2-"), {})
    assert "Once upon a time" in capfd.readouterr().out


def test_report(pliant: Run, place: Path) -> None:
    assert run_page("report.md", pliant) == 2
    assert "<!doctype html>" in (place / "report.html").read_text("utf-8").lower()


def test_share_on_the_hub(pliant: Run, place: Path, empty_hub: Any) -> None:
    """A push, then pulls; the login is the one line that is not run: it asks for a secret."""
    text = (PAGES / "share_on_the_hub.md").read_text("utf-8")
    repo = "someone/model"
    assert repo in text
    before = SMALLER.copy()
    try:
        SMALLER.update({repo: "someone/tiny", "-o model.pliant": "-o pulled.pliant"})
        # The longer name first: `-o model.pliant` would become `-o X.pliant`.
        SMALLER["model.pliant"] = SMALLER.pop("model.pliant")
        assert run_page("share_on_the_hub.md", pliant) == 7
    finally:
        SMALLER.clear()
        SMALLER.update(before)
    from pliant.artifact import Artifact

    assert empty_hub.private is True and len(empty_hub.commits) == 1
    assert Artifact.open(place / "phone.pliant").num_planes == 3
    assert Artifact.open(place / "pulled.pliant").num_planes == 8


def test_build_from_other_files(
    pliant: Run, place: Path, checkpoint: Path, text_file: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    from pliant.recipes import build_options

    few = partial(build_options.BuildOptions, windows=2, window_tokens=96)
    monkeypatch.setattr(build_options, "BuildOptions", few)
    monkeypatch.setenv("PLIANT_CALIBRATION", str(text_file))
    ran = pliant("export", "X.pliant@d1-w0.5", "--to", "gguf", "--type", "F32", "-o", "model.gguf",
                 "--no-verify")  # fmt: skip
    assert ran.code == 0, ran.err
    write_llama2c(place)
    shutil.copytree(checkpoint, place / "checkpoint")
    write_adapter(place / "adapter")
    lines = shell_lines("build_from_other_files.md")
    assert len(lines) == 3
    for line in lines:
        shutil.rmtree(place / "X.pliant")
        ran = pliant(*shlex.split(line, comments=True)[1:])
        assert ran.code == 0, f"{line}: {ran.err}"
        assert pliant("verify", "X.pliant").code == 0


def write_llama2c(folder: Path) -> None:
    """A random model of one block in the first format of llama2.c, and its tokenizer."""
    hidden, ffn, heads, context = 64, 64, 4, 64
    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    pieces += [bytes([letter]) for letter in range(32, 127)]
    shapes: list[tuple[int, ...]] = [
        (len(pieces), hidden), (hidden,), *[(hidden, hidden)] * 4, (hidden,), (ffn, hidden),
        (hidden, ffn), (ffn, hidden), (hidden,), (context, hidden // heads),
    ]  # fmt: skip
    random = np.random.default_rng(0)
    values = [
        np.ones(shape, "<f4") if len(shape) == 1 else random.normal(0, 0.1, shape).astype("<f4")
        for shape in shapes
    ]
    header = struct.pack("<7i", hidden, ffn, 1, heads, heads, len(pieces), context)
    (folder / "stories260K.bin").write_bytes(header + b"".join(map(np.ndarray.tobytes, values)))
    table = b"".join(struct.pack("<fi", -float(place), len(piece)) + piece
                     for place, piece in enumerate(pieces))  # fmt: skip
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 6) + table)


def write_adapter(folder: Path) -> None:
    """A LoRA of PEFT for one matrix of the checkpoint."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(1)
    shapes = {"lora_A": (2, 192), "lora_B": (64, 2)}
    tensors: dict[str, NDArray[np.float32]] = {
        f"base_model.model.model.layers.1.mlp.down_proj.{name}.weight":
            random.normal(0, 0.1, shape).astype("f4")
        for name, shape in shapes.items()
    }  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors")


def test_evaluate_with_lm_eval(place: Path) -> None:
    """What the page asks for is there: the cut, the tasks, and without lm-eval the pip command.

    The model class itself is run by `tests/lm_eval`, with lm-eval where it is installed.
    """
    lines = [words_of(line) for line in shell_lines("evaluate_with_lm_eval.md")]
    commands = [words for words in lines if words[:3] == ["python", "-m", "pliant.lm_eval"]]
    assert len(commands) == 2
    tasks = Path(__file__).parents[2] / "benchmarks" / "tasks"
    for words in commands:
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert options["--model"] == "pliant"
        arguments = dict(pair.split("=") for pair in options["--model_args"].split(","))
        from pliant.artifact import Artifact

        Artifact.open(arguments["pretrained"]).subnet(arguments["subnet"])
        if "--include_path" in options:
            named = options["--tasks"].split(",")
            assert all((tasks / f"{task}.yaml").is_file() for task in named)
    if importlib.util.find_spec("lm_eval") is None:
        said = subprocess.run(
            [sys.executable, *commands[0][1:]], capture_output=True, text=True, check=False
        )
        assert said.returncode == 5 and "Traceback" not in said.stderr
        assert "pip install 'pliant[lm-eval]'" in said.stderr
