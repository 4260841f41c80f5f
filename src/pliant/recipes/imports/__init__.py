"""Models that come in other files than a Hugging Face folder, turned into one for a build."""

from pliant.recipes.imports.gguf_folder import gguf_folder
from pliant.recipes.imports.llama2c import llama2c_folder
from pliant.recipes.imports.source import as_checkpoint

__all__ = ["as_checkpoint", "gguf_folder", "llama2c_folder"]
