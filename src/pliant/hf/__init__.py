"""`import pliant.hf` lets `transformers` open artifacts: `from_pretrained("X.pliant@d8-w0.75-b3")`.

It registers a quantization method named `pliant`, and teaches `AutoModelForCausalLM`, `AutoConfig`
and `AutoTokenizer` the addresses of artifacts. What they are given otherwise goes its usual way.
`UnsupportedError` names the pip command where `torch` or `transformers` is missing.
"""

from __future__ import annotations

import importlib.util

from pliant.errors import UnsupportedError


def _require(*modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f"pliant.hf needs {' and '.join(missing)}, which is not installed here; "
            "install it with pip install 'pliant[hf]'."
        )


_require("torch", "transformers")

from pliant.hf.opening import load_config, load_model, register  # noqa: E402
from pliant.hf.quantizer import PliantConfig, PliantQuantizer  # noqa: E402

__all__ = ["PliantConfig", "PliantQuantizer", "load_config", "load_model", "register"]

register()
