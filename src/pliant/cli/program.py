"""The program `pliant`: its commands, and how a failure becomes a sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from pliant.cli.bench import bench
from pliant.cli.build import build
from pliant.cli.chat import chat
from pliant.cli.cut import cut
from pliant.cli.devices import devices
from pliant.cli.doctor import doctor
from pliant.cli.evaluate import evaluate
from pliant.cli.export import export
from pliant.cli.fit import fit
from pliant.cli.inspect import inspect
from pliant.cli.load import load
from pliant.cli.plan import plan
from pliant.cli.probe import probe
from pliant.cli.pull import pull
from pliant.cli.push import push
from pliant.cli.report import report
from pliant.cli.run import run
from pliant.cli.serve import serve
from pliant.cli.tune_shapes import tune_shapes
from pliant.cli.verify import verify
from pliant.errors import InterruptedJobError, OutOfSpaceError, PliantError

#: Typer brings its own copy of click or uses the installed one; either way this is its root error.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

#: Commands that leave their finished steps on disk and go on from there when run again.
RESUMABLE = ("build", "tune-shapes", "pull", "push")

_TRUE = ("1", "true", "yes", "on", "t", "y")


class _InterruptedError(PliantError):
    """Ctrl-C in a command that has nothing to resume."""


class Commands(TyperGroup):
    """The group of commands; turns what the system raises into errors of pliant."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _interruption(ctx.invoked_subcommand) from None
        except BrokenPipeError:
            # The reader of a pipe such as `| head` has gone: not a failure, and nothing to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except MemoryError as error:
            raise OutOfSpaceError(
                "The machine ran out of memory; close other programs, take a smaller cut, "
                "or give build a lower --max-ram."
            ) from error
        except OSError as error:
            raise _system_failure(error) from error


app = typer.Typer(
    cls=Commands,
    name="pliant",
    help="One language-model file that fits every device.",
    epilog="A subnet is addressed as X.pliant@name or X.pliant@d8-w0.75-b3: blocks kept, width "
    "ratio, planes; parts may be left out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("build")(build)
app.command("tune-shapes")(tune_shapes)
app.command("inspect")(inspect)
app.command("cut")(cut)
app.command("fit")(fit)
app.command("run")(run)
app.command("chat")(chat)
app.command("serve")(serve)
app.command("load")(load)
app.command("eval")(evaluate)
app.command("bench")(bench)
app.command("export")(export)
app.command("verify")(verify)
app.command("report")(report)
app.command("push")(push)
app.command("pull")(pull)
app.command("plan")(plan)
app.command("probe")(probe)
app.command("devices")(devices)
app.command("doctor")(doctor)


@app.callback()
def root() -> None:
    """One language-model file that fits every device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `PLIANT_DEBUG=1` shows tracebacks."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, prog_name="pliant", standalone_mode=False)
    except (PliantError, _CommandLineError) as error:
        if _is_true("PLIANT_DEBUG"):
            raise
        return _report(error, as_json="--json" in given or _is_true("PLIANT_JSON"))
    return code if isinstance(code, int) else 0


def _report(error: Exception, as_json: bool) -> int:
    """Say what went wrong on stderr; returns the exit code."""
    code = int(getattr(error, "exit_code", 1))
    describe = getattr(error, "format_message", None)
    message = " ".join(str(describe() if describe else error).split())
    command = getattr(getattr(error, "ctx", None), "command_path", None)
    if command:
        message = f"{message.rstrip('.')}. See `{command} --help`."
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message if as_json else getattr(error, "message", message), file=sys.stderr)
    elif as_json:
        import msgspec

        fields = {"kind": type(error).__name__.strip("_"), "message": message, "exit_code": code}
        print(msgspec.json.encode({"error": fields}).decode(), file=sys.stderr)
    else:
        print(f"pliant: {message}", file=sys.stderr)
    return code


def _interruption(command: str | None) -> PliantError:
    if command in RESUMABLE:
        return InterruptedJobError(
            "Interrupted; what was finished is kept. Run the same command again to go on."
        )
    return _InterruptedError("Interrupted; nothing was written.")


def _system_failure(error: OSError) -> PliantError:
    """The operating system's refusal as a sentence that says what to do."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpaceError(
            f"The disk is full{where}; what was finished is kept. Make room and run it again."
        )
    return PliantError(f"{error.strerror or error}{where}; check the path and its permissions.")


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in _TRUE
