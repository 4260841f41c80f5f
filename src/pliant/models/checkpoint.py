"""`Checkpoint`: a Hugging Face folder of safetensors, read one tensor at a time.

Config and weights are compared by the headers of the files before any weight is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from pliant.errors import CheckpointError, UnsupportedError
from pliant.spec import ModelSpec, read_spec
from pliant.spec.checkpoint_names import checkpoint_names, head_name, is_ignorable

_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: Weights, configs and everything a tokenizer consists of; never pickles or code.
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


class StoredTensor(msgspec.Struct, frozen=True):
    """What a file's header says of one tensor: its file, element type and shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """A source model on disk: `folder`, its parsed `config`, its `spec`, and its tensors."""

    def __init__(
        self, folder: Path, config: dict[str, Any], spec: ModelSpec, stored: dict[str, StoredTensor]
    ) -> None:
        self.folder = folder
        self.config = config
        self.spec = spec
        self._stored = stored
        self._names = checkpoint_names(spec, stored)

    @classmethod
    def open(cls, source: str | Path) -> Checkpoint:
        """Open a folder, or download `organisation/name` from the Hugging Face hub.

        `UnsupportedError` where pliant cannot run the model; `CheckpointError` where files are
        missing or damaged, or where config and weights disagree. No weight is read.
        """
        folder = Path(source)
        if not folder.exists() and _HUB_ID.fullmatch(str(source)):
            folder = _download(str(source))
        config = read_config(folder)
        spec = read_spec(config)
        stored = _read_headers(folder)
        checkpoint = cls(folder, config, spec, stored)
        checkpoint._check_headers()
        return checkpoint

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of pliant name `name` as a new float32 tensor.

        `CheckpointError` naming the tensor where it holds NaN or infinity, or where a head stored
        beside tied embeddings differs from them.
        """
        tensor = self._read(self._names[name])
        if name == "embedding" and self.spec.tied_embeddings:
            spare = head_name(self._names)
            if spare in self._stored and not torch.equal(self._read(spare), tensor):
                raise CheckpointError(
                    f"config.json ties the head to the embedding, but {spare} differs from "
                    f"{self._names[name]}; set tie_word_embeddings to false."
                )
        return tensor

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors by pliant name, read one at a time: embedding first, block by block."""
        for name in self.spec.tensors():
            yield name, self.tensor(name)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config.json and the hash of each weight file, in order of their names."""
        total = hashlib.sha256()
        files = sorted({stored.file for stored in self._stored.values()})
        for path in [self.folder / "config.json", *files]:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.name}\0{digest}\n".encode())
        return total.hexdigest()

    def _read(self, stored_name: str) -> torch.Tensor:
        stored = self._stored[stored_name]
        # A fresh handle each time: pages of the mapped file leave memory with it.
        try:
            with safe_open(stored.file, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored_name).to(torch.float32, copy=True)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{stored_name} of {stored.file}: {error}.") from error
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(
                f"{stored_name} of {stored.file} holds NaN or infinity; "
                "the checkpoint is damaged or its training diverged."
            )
        return tensor

    def _check_headers(self) -> None:
        """Compare every name, shape and element type with what the config asks for."""
        for name, shape in self.spec.tensors().items():
            theirs = self._names[name]
            found = self._stored.get(theirs)
            if found is None:
                raise CheckpointError(
                    f"config.json asks for the tensor {theirs} {list(shape)}; "
                    f"it is not in {self.folder}."
                )
            if found.shape != shape:
                raise CheckpointError(
                    f"config.json asks for {theirs} of shape {list(shape)}; "
                    f"{found.file.name} has {list(found.shape)}."
                )
            if found.dtype not in _FLOAT_TYPES:
                raise UnsupportedError(
                    f"{theirs} is stored as {found.dtype}; pliant reads unquantized weights: "
                    f"{', '.join(_FLOAT_TYPES)}."
                )
        known = {*self._names.values(), head_name(self._names)}
        extra = sorted(
            name for name in self._stored if name not in known and not is_ignorable(name)
        )
        if extra:
            raise CheckpointError(
                f"The weights hold {len(extra)} tensors that config.json knows nothing of, "
                f"such as {extra[0]}; config and weights do not belong together."
            )


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint folder."""
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist; give a checkpoint folder or a hub id.")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no config.json; give the folder of a Hugging Face checkpoint."
        )
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}; it should be an object.")
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, or the single one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index} is not an index of safetensors files.") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{index} names {name!r}, which is not a file beside it.")
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise CheckpointError(f"{index.name} names {missing[0]}; it is not in {folder}.")
        return [folder / name for name in sorted(names)]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    files = [path for path in files if path.is_file()]
    if files:
        return files
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when opened. Convert it "
            "where you trust it, with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    raise CheckpointError(f"{folder} holds no model.safetensors and no index of shards.")


def _read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Name, element type and shape of every tensor of a folder."""
    stored: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a file handle is not a mapping
                    if name in stored:
                        raise CheckpointError(
                            f"{name} is stored both in {stored[name].file.name} and {path.name}."
                        )
                    part = file.get_slice(name)
                    shape = tuple(part.get_shape())
                    stored[name] = StoredTensor(path, part.get_dtype(), shape)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error
    return stored


def _download(hub_id: str) -> Path:
    """Fetch a model from the Hugging Face hub into its cache; the config first, to refuse early."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        config = hf_hub_download(hub_id, "config.json")
        read_spec(read_config(Path(config).parent))
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{hub_id} is no folder here, and fetching it from the Hugging Face hub failed: "
            f"{error} Give the path of a folder, or go online."
        ) from error
