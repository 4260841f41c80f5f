"""The program as a whole: exit codes, streams, flags, what a failure looks like."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pliant import errors
from pliant.cli import program, reference

Run = Callable[..., Any]


def raising(error: BaseException) -> Callable[..., None]:
    def command(*_: object, **__: object) -> None:
        raise error

    return command


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from pliant.cli import main; main(['--help']);"
        "heavy = {'numpy', 'torch', 'tokenizers', 'jinja2', 'huggingface_hub', 'pliant._native'};"
        "sys.exit(bool(heavy & set(sys.modules)) and str(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "inspect" in ran.stdout


def test_no_command_is_a_usage_error(pliant: Run) -> None:
    assert pliant().code == 2


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["fit"], ["fit", "X.pliant"], ["cut", "X.pliant", "--bogus"],
     ["fit", "X.pliant", "--memory", "6 apples"], ["cut", "X.pliant", "--bits", "three"],
     ["fit", "X.pliant", "--memory", "6MB", "--max-loss", "-5%"]],
)  # fmt: skip
def test_wrong_usage_is_one_sentence_and_code_2(pliant: Run, arguments: list[str]) -> None:
    ran = pliant(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("pliant: ")
    assert ran.err.count("\n") == 1


def test_errors_are_json_when_asked(pliant: Run, tmp_path: Path) -> None:
    ran = pliant("inspect", tmp_path / "no.pliant", "--json")
    assert ran.code == 1
    assert ran.out == ""
    error = json.loads(ran.err)["error"]
    assert error["kind"] == "ArtifactError"
    assert error["exit_code"] == 1
    assert "no.pliant" in error["message"]


def test_json_can_be_asked_for_by_the_environment(
    pliant: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLIANT_JSON", "1")
    assert "error" in json.loads(pliant("inspect", tmp_path / "no.pliant").err)


def test_usage_errors_are_json_too(pliant: Run) -> None:
    assert json.loads(pliant("fit", "--json").err)["error"]["exit_code"] == 2


def test_debug_shows_the_traceback(
    pliant: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLIANT_DEBUG", "1")
    with pytest.raises(errors.ArtifactError):
        pliant("inspect", tmp_path / "no.pliant")


@pytest.mark.parametrize(
    "kind", [value for value in vars(errors).values()
             if isinstance(value, type) and issubclass(value, errors.PliantError)],
)  # fmt: skip
def test_every_foreseen_error_returns_its_code(
    pliant: Run, artifact: Path, monkeypatch: pytest.MonkeyPatch, kind: type[errors.PliantError]
) -> None:
    monkeypatch.setattr("pliant.artifact.Artifact.open", raising(kind("asked, found, do")))
    ran = pliant("inspect", artifact)
    assert ran.code == kind.exit_code
    assert ran.err == "pliant: asked, found, do\n"


def test_ctrl_c_is_resumable_only_where_something_is_kept(
    pliant: Run, artifact: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pliant.artifact.Artifact.open", raising(KeyboardInterrupt()))
    ran = pliant("inspect", artifact)
    assert ran.code == 1
    assert "nothing was written" in ran.err
    monkeypatch.setattr("pliant.cli.build._plan", raising(KeyboardInterrupt()))
    ran = pliant("build", checkpoint, "-o", tmp_path / "new.pliant")
    assert ran.code == 75
    assert "same command again" in ran.err


@pytest.mark.parametrize(
    ("failure", "says"),
    [(OSError(28, "No space left on device", "X.pliant"), "disk is full at X.pliant"),
     (PermissionError(13, "Permission denied", "X.pliant"), "Permission denied at X.pliant"),
     (MemoryError(), "out of memory")],
)  # fmt: skip
def test_failures_of_the_system_are_sentences(
    pliant: Run, artifact: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, says: str
) -> None:
    monkeypatch.setattr("pliant.artifact.Artifact.open", raising(failure))
    ran = pliant("inspect", artifact)
    assert ran.code == 1
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_our_own_mistakes_keep_their_traceback(
    pliant: Run, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pliant.artifact.Artifact.open", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        pliant("inspect", artifact)


def test_a_closed_pipe_is_no_failure(pristine: Path) -> None:
    """`pliant inspect X.pliant | head -0`."""
    command = [sys.executable, "-m", "pliant.cli", "inspect", str(pristine)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert message == b""


def test_every_flag_has_its_variable() -> None:
    found = list(reference.flags())
    assert len(found) > 60
    for command, flag in found:
        long = next(name for name in flag.opts if name.startswith("--"))
        expected = "PLIANT_" + long[2:].replace("-", "_").upper()
        assert flag.envvar == expected, f"{command} {long}"


def test_every_command_can_print_json_and_be_quiet() -> None:
    takes: dict[str, set[str]] = {}
    for command, flag in reference.flags():
        takes.setdefault(command, set()).update(flag.opts)
    tools = ["build", "tune-shapes", "inspect", "cut", "export", "fit", "verify", "push", "pull"]
    measuring = ["eval", "bench", "plan", "probe", "devices", "doctor", "report"]
    assert set(takes) == {*tools, *measuring, "run", "chat", "serve", "load"}
    assert all({"--json", "--quiet"} <= flags for flags in takes.values())


def test_every_flag_and_argument_says_what_it_is() -> None:
    page = reference.render()
    assert not re.search(r"`PLIANT_\w+` \| *\|$", page, re.MULTILINE), "a flag without help"
    assert "None" not in page


def test_the_reference_is_up_to_date() -> None:
    if not reference.PAGE.parents[1].exists():
        pytest.skip("the documentation is not part of an installed package")
    page = reference.PAGE.read_text(encoding="utf-8")
    assert page == reference.render(), "run `make docs`"


def test_resumable_commands_exist() -> None:
    names = {command.name for command in program.app.registered_commands}
    assert set(program.RESUMABLE) <= names


def test_sigint_of_a_real_process_ends_in_a_sentence(pristine: Path) -> None:
    """A chat waits on stdin; Ctrl-C ends it without a traceback."""
    import signal

    command = [sys.executable, "-m", "pliant.cli", "chat", str(pristine), "--threads", "1"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    # The note about the missing chat template is written once the engine is open.
    assert b"no chat template" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert message == b"pliant: Interrupted; nothing was written.\n"
