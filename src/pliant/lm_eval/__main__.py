"""`python -m pliant.lm_eval`: the command of lm-eval, which then knows `--model pliant`."""

from __future__ import annotations

import sys

from pliant.errors import PliantError


def main() -> int:
    """Run lm-eval with the arguments given; the exit code."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import pliant.lm_eval  # noqa: F401  (registers the model)

        cli_evaluate()
    except PliantError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
