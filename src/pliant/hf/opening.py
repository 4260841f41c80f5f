"""Artifacts behind `from_pretrained` of the Auto classes of `transformers`.

These look for a file of weights in a folder, and no hook of theirs comes before that. So their
`from_pretrained` is wrapped: a path that is an artifact, with or without `@cut`, is opened here,
and everything else is passed on untouched.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from pliant.artifact.address import split_address
from pliant.artifact.folder import json_object
from pliant.artifact.manifest import MANIFEST_FILE
from pliant.errors import UsageError
from pliant.export.hf_config import subnet_config
from pliant.hf.quantizer import (
    METHOD,
    PliantConfig,
    PliantQuantizer,
    opened,
    require_cpu_map,
    small_tensors,
)

#: What `load_model` and `load_config` take besides the path.
_OPTIONS = ("subnet", "activations", "threads", "pad")


def register() -> None:
    """Register the quantization method and wrap the Auto classes; a second call does nothing."""
    if METHOD in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return
    register_quantization_config(METHOD)(PliantConfig)
    register_quantizer(METHOD)(PliantQuantizer)
    _wrap(transformers.AutoModelForCausalLM, load_model)
    _wrap(transformers.AutoConfig, load_config)
    _wrap(transformers.AutoTokenizer, None)


def load_model(path: str | os.PathLike[str], *arguments: Any, **named: Any) -> Any:
    """A `PreTrainedModel` whose linear layers run on the planes of an artifact.

    `path` is `X.pliant` or `X.pliant@cut`. Named: `subnet` (an address or the name of a saved cut),
    `activations` ("int8" or "float32"), `threads` (None: the physical cores), `pad` (fill up with
    zeros what the classes cannot hold; else `UnsupportedError`), and what `from_pretrained` of the
    model's class takes. `UsageError` for two different cuts and for a cut that does not exist.
    """
    config, rest = _config_and_rest(path, named)
    given = rest.pop("config", None)
    if given is not None and getattr(given, "model_type", None) != config.model_type:
        raise UsageError(f"A config of {given!r} was given; an artifact brings its own: leave out.")
    if rest.get("quantization_config") is not None:
        raise UsageError(
            "A quantization_config was given; an artifact is quantized already. Choose bits with "
            "subnet='b4'."
        )
    quantization = PliantConfig(**config.quantization_config)
    # Checked here, because transformers asks for accelerate as soon as there is a map.
    require_cpu_map(rest.pop("device_map", None))
    for ignored in ("_from_auto", "trust_remote_code", "revision", "subfolder", "cache_dir",
                    "local_files_only", "token", "use_safetensors"):  # fmt: skip
        rest.pop(ignored, None)
    # A model without weights of its own has no folder to read its generation settings from.
    folder = Path(quantization.artifact)
    if "generation_config" not in rest and (folder / "generation_config.json").exists():
        rest["generation_config"] = transformers.GenerationConfig.from_pretrained(folder)
    model_class: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class.from_pretrained(
        None, *arguments, config=config, state_dict=small_tensors(opened(quantization)), **rest
    )
    model.name_or_path = os.fspath(path)
    return model


def load_config(path: str | os.PathLike[str], **named: Any) -> Any:
    """The config of a cut, with a `quantization_config` that names it; options as `load_model`.

    With `return_unused_kwargs` also what was named and not used, as `AutoConfig` does.
    """
    wants_rest = named.pop("return_unused_kwargs", False)
    config, rest = _config_and_rest(path, named)
    return (config, rest) if wants_rest else config


def _config_and_rest(
    path: str | os.PathLike[str], named: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The config of a cut, and the names that say nothing about the cut."""
    rest = dict(named)
    folder, address = split_address(os.fspath(path))
    options = {name: rest.pop(name) for name in _OPTIONS if name in rest}
    subnet = options.pop("subnet", None) or address
    if address and subnet != address:
        raise UsageError(
            f"The path asks for the cut {address!r} and subnet= for {subnet!r}; name one of them."
        )
    quantization = PliantConfig(str(folder.resolve()), subnet, **options)
    weights = opened(quantization)
    artifact = weights.artifact
    dense = json_object(artifact.read_file("config.json"), artifact.path / "config.json")
    values = subnet_config(dense, weights.subnet, weights.held, "float32")
    values.pop("torch_dtype")
    # Embedding and head are modules over planes, each with its own number of them; nothing to tie.
    values["tie_word_embeddings"] = False
    config = transformers.AutoConfig.for_model(**values, dtype="float32")
    config.quantization_config = quantization.to_dict()
    return config, rest


def _wrap(auto_class: Any, ours: Callable[..., Any] | None) -> None:
    """Let `ours` answer for artifacts in `auto_class.from_pretrained`; None: theirs, without a cut.

    A tokenizer is the same for all cuts, and its files lie in the artifact as theirs expects them.
    """
    theirs = auto_class.from_pretrained.__func__

    @functools.wraps(theirs)
    def from_pretrained(cls: Any, *arguments: Any, **named: Any) -> Any:
        path: Any = arguments[0] if arguments else named.get("pretrained_model_name_or_path")
        if not is_artifact(path):
            return theirs(cls, *arguments, **named)
        named.pop("pretrained_model_name_or_path", None)
        if ours is not None:
            return ours(path, *arguments[1:], **named)
        named.pop("subnet", None)
        return theirs(cls, str(split_address(os.fspath(path))[0]), *arguments[1:], **named)

    auto_class.from_pretrained = classmethod(from_pretrained)


def is_artifact(path: Any) -> bool:
    """Whether `path` is an artifact on this machine, with or without `@cut`."""
    try:
        return (split_address(os.fspath(path))[0] / MANIFEST_FILE).is_file()
    except (TypeError, ValueError, OSError, UsageError):
        return False
