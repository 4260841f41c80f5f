"""The models that `serving.py` serves, and what of the other server is left out for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pliant.artifact import Artifact
from pliant.load import Endpoint
from pliant.recipes.build import build
from pliant.recipes.demo import demo_checkpoint
from pliant.runtime import Tokenizer
from random_models import CACHE, CONFIGS, ROOT, random_artifact

#: Clients who come at once.
CLIENTS = (1, 4, 16, 64)
#: The trained model of this repository, as a user builds it; the others have random weights.
TALE = "tale"
#: Tokens of a context that are left free: prompts begin with numbers of some digits.
_SPARE_TOKENS = 8


@dataclass(frozen=True)
class ServedModel:
    """A model, how many clients ask at once, what of that the other server is asked, and why that
    is not everything.
    """

    name: str
    clients: tuple[int, ...] = CLIENTS
    peer_clients: tuple[int, ...] = CLIENTS
    peer_capacity: bool = True
    reason: str = ""


#: It writes one text at a time: 64 texts of a model of half a billion parameters take it a minute,
#: and a search for its capacity ten times as long.
_PARTS = {
    "Qwen2.5-0.5B": ServedModel(
        "Qwen2.5-0.5B",
        peer_clients=(1, 4, 16),
        peer_capacity=False,
        reason="llama.cpp writes one text at a time, so its 64 clients and its capacity were left "
        "out: minutes for what 16 clients show",
    ),
}


def served_model(name: str, everything: bool = False) -> ServedModel:
    """What is measured of a model, or `everything` that there is."""
    if name != TALE and name not in CONFIGS:
        raise SystemExit(f"There is no model {name!r}; there are {', '.join([TALE, *CONFIGS])}.")
    return ServedModel(name) if everything else _PARTS.get(name, ServedModel(name))


def served_artifact(name: str, planes: int) -> Path:
    """The demo model with all its planes, built unless it is there, or a random model of so many
    with a tokenizer of one token a byte, and a word for every other id.
    """
    return _demo_artifact() if name == TALE else _random_artifact(name, planes)


def _demo_artifact() -> Path:
    path, checkpoint = ROOT / ".demo" / "tale.pliant", demo_checkpoint()
    if not (path / "pliant.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        build(checkpoint, path, calibration=checkpoint / "calibration.txt")
    return path


def _random_artifact(name: str, planes: int) -> Path:
    config = CONFIGS[name]
    tokenizer = _byte_tokenizer(config["vocab_size"])
    return random_artifact(name, config, planes, CACHE / "serving", tokenizer).path


def _byte_tokenizer(size: int) -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"Ġw{place}" for place in range(len(alphabet), size))]
    vocabulary = {word: place for place, word in enumerate(words[:size])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return str(backend.to_str())


def fitting_words(path: Path, most: int, max_tokens: int) -> int:
    """Of at most so many words of a prompt those that fit into the context with an answer."""
    tokenizer, context = Tokenizer.load(path), Artifact.open(path).spec.max_context
    room = context - max_tokens - _SPARE_TOKENS
    words = most
    while words > 1 and len(tokenizer.encode(_prompt(words))) > room:
        words -= 1
    return words


def _prompt(words: int) -> str:
    return str(Endpoint(url="").body(words, 1, 10_000)["prompt"])
