"""pliant: one language-model file that fits every device.

`pliant.open(path)` opens an artifact to write text with any subnet of it; `pliant.build(...)` makes
an artifact from a checkpoint and needs torch; `pliant.errors` are the errors of both. Importing
pliant imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pliant import errors

if TYPE_CHECKING:
    from pliant.recipes.build import build
    from pliant.runtime.text_engine import open_artifact as open

__all__ = ["__version__", "build", "errors", "open"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what the facade offers when it is first asked for."""
    if name == "open":
        from pliant.runtime.text_engine import open_artifact

        return open_artifact
    if name == "build":
        try:
            from pliant.recipes.build import build
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise errors.UnsupportedError(
                "Building an artifact needs torch, which is not installed here; "
                "install it with pip install 'pliant[torch]'."
            ) from error
        return build
    raise AttributeError(f"pliant has no {name!r}; it offers {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
