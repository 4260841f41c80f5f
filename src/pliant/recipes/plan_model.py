"""Which model a plan is for: a folder, an artifact, a name of the catalogue, or a hub id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.artifact import Artifact
from pliant.costs import Experts, read_described
from pliant.costs.catalogue import catalogued, similar
from pliant.errors import CheckpointError, UsageError
from pliant.spec import ModelSpec


@dataclass(frozen=True)
class PlannedModel:
    """A model as far as a plan needs it; `artifact` where it is one already."""

    name: str
    origin: str
    spec: ModelSpec
    experts: Experts | None = None
    artifact: Artifact | None = None


def find_model(name: str, offline: bool = False) -> PlannedModel:
    """The model that `name` means.

    A path is an artifact, a folder with a config.json, or such a file. Other names are looked up
    in the catalogue, then as hub ids, whose config.json alone is fetched (from the local cache
    only with `offline`). Raises `UsageError` for a name that means nothing, `CheckpointError`
    where a config is missing, cannot be read or cannot be fetched, `UnsupportedError` for an
    architecture whose cost is not known.
    """
    path = Path(name)
    if (path / "pliant.json").is_file():
        artifact = Artifact.open(path)
        return PlannedModel(name, "artifact", artifact.spec, artifact=artifact)
    if path.exists():
        return _described(name, "local config", _read(path / "config.json" if path.is_dir()
                                                      else path))  # fmt: skip
    config = catalogued(name)
    if config is not None:
        return _described(name, "catalogue", config)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _described(name, "hub", _read(_fetched(name, offline)))
    near = similar(name)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"{name!r} is no file, no folder, and no model of the catalogue.{hint} Hub ids are "
        "written like owner/name."
    )


def _described(name: str, origin: str, config: dict[str, Any]) -> PlannedModel:
    described = read_described(config)
    return PlannedModel(name, origin, described.spec, described.experts)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no {path}; a plan needs the config.json.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object; a plan needs a config.json.")
    return config


def _fetched(name: str, offline: bool) -> Path:
    """The config.json of a hub id, from the cache or the network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json", local_files_only=offline))
    except LocalEntryNotFoundError as error:
        how = "with --offline" if offline else "without a network"
        raise CheckpointError(
            f"The config of {name} is not in the local cache and cannot be fetched {how}; give a "
            "folder with its config.json, or a model of the catalogue."
        ) from error
    except HFValidationError as error:
        raise UsageError(f"{name!r} is no hub id: {error}.") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"The config of {name} cannot be fetched: {str(error).splitlines()[0]}. Look at the "
            "name, log in with `hf auth login` where the model is gated, or give a folder."
        ) from error
