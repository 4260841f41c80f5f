"""`import pliant.lm_eval` gives lm-eval a model named `pliant` that runs on our engine.

lm-eval looks for models only among its own, so its command is started as
`python -m pliant.lm_eval --model pliant --model_args pretrained=X.pliant,subnet=d8-w0.75-b3 ...`.
`UnsupportedError` names the pip command where lm-eval is missing.
"""

from __future__ import annotations

import importlib.util
import sys

from pliant.errors import UnsupportedError

if importlib.util.find_spec("lm_eval") is None:
    _missing = UnsupportedError(
        "pliant.lm_eval needs lm-eval, which is not installed here; "
        "install it with pip install 'pliant[lm-eval]'."
    )
    # `python -m pliant.lm_eval` runs this file before `__main__` could answer with a sentence.
    if sys.argv[:1] == ["-m"]:
        print(f"error: {_missing}", file=sys.stderr)
        sys.exit(_missing.exit_code)
    raise _missing

from pliant.lm_eval.model import PliantLM

__all__ = ["PliantLM"]
