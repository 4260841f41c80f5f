"""`python -m pliant.cli.reference`: docs/reference/cli.md, written from the commands themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pliant import errors

#: Where the reference lies in the repository.
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"

_HEAD = """\
# The command line

Written by `python -m pliant.cli.reference` from the commands; do not edit.

Data goes to stdout, notes and progress to stderr. Every command takes `--json` (one JSON object on
stdout, errors as a JSON object on stderr) and `--quiet`. Every flag can be given as an environment
variable, and a flag on the command line goes before it. `PLIANT_DEBUG=1` shows the traceback of an
error, `PLIANT_ISA=scalar|avx2|avx2_lookup|avxvnni|avx512|asimd|asimd_lookup|neon|i8mm` chooses the
engine's kernels.

A subnet is addressed as `X.pliant@name` (a saved cut) or `X.pliant@d8-w0.75-b3-e4-k8`: blocks kept,
width ratio, planes of the blocks, planes of embedding and head, bits of the cache. Parts may be
left out: `@b4` is the full shape at 4 planes, no suffix the full shape at all planes. Sizes are
written `6MB` (10^6), `512MiB` (2^20) or in bytes; losses `+5%` or `0.05`.
"""


def render() -> str:
    """The whole page as Markdown."""
    # Imported here because the program imports every command, and this module is one of the family.
    from typer.main import get_command

    from pliant.cli.program import app

    group: Any = get_command(app)
    parts = [_HEAD, _exit_codes()]
    parts += [_command(name, command) for name, command in group.commands.items()]
    return "\n".join(parts)


def main() -> int:
    """Write the page; with `--check` only say whether it is up to date (exit 1 if not)."""
    page = render()
    if "--check" in sys.argv:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        print(f"{PAGE} is " + ("up to date." if fresh else "old; run this without --check."))
        return 0 if fresh else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


def _exit_codes() -> str:
    meanings = {
        0: "done",
        1: "an error that has no code of its own, or Ctrl-C where there is nothing to resume",
        2: "the command line makes no sense",
        3: "no subnet fits the budget; the message names the smallest that exists",
        4: "the best subnet that fits loses more than was allowed",
        5: "an architecture, format or feature that is not supported",
        6: "bytes or logits are not what receipts say, or an export is another model",
        75: "interrupted (Ctrl-C, SIGTERM); the same command goes on from there",
    }
    tree = [value for value in vars(errors).values() if isinstance(value, type)]
    known = {0} | {kind.exit_code for kind in tree if issubclass(kind, errors.PliantError)}
    assert known == set(meanings), "every exit code of the error tree is explained here"
    rows = [f"| {code} | {meaning} |" for code, meaning in meanings.items()]
    return "\n".join(["## Exit codes", "", "| code | means |", "|---|---|", *rows, ""])


def _command(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join(["pliant", name, *(_metavar(param) for param in arguments), "[FLAGS]"])
    lines = [f"## pliant {name}", "", " ".join(command.help.split()), "", f"    {usage}", ""]
    lines += [f"- `{_metavar(param)}`: {param.help}" for param in arguments]
    lines += ["", "| flag | default | variable | |", "|---|---|---|---|"]
    lines += list(map(_option, filter(_is_shown, options)))
    return "\n".join([*lines, ""])


def _is_shown(param: Any) -> bool:
    return bool(param.name != "help")


def _option(param: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in param.opts)
    value = "" if param.is_flag else f" {param.metavar}"
    help_text = " ".join((param.help or "").split())
    return f"| {flags}{value} | {_default(param)} | `{param.envvar}` | {help_text} |"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if param.is_flag or param.default is None:
        return ""
    return f"{param.default:g}" if isinstance(param.default, float) else str(param.default)


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def flags() -> Iterator[tuple[str, Any]]:
    """Every command's name with each of its flags but `--help`."""
    from typer.main import get_command

    from pliant.cli.program import app

    group: Any = get_command(app)
    for name, command in group.commands.items():
        for param in command.params:
            if param.param_type_name == "option" and _is_shown(param):
                yield name, param


if __name__ == "__main__":
    sys.exit(main())
