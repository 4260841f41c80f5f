"""An engine asked by JSON lines; run by its path in any interpreter, imports nothing of pliant.

`run.py hf` or `run.py gguf`: the module `hf_engine` or `gguf_engine` beside this file answers. Each
line of stdin is an object with an `action` and its arguments, each answer a line on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def main() -> None:
    """Answer until stdin ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine = importlib.import_module(f"{sys.argv[1]}_engine").Engine()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(engine, request.pop("action"))(**request)
        except Exception as error:  # the one who asked decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
