"""Models that many tests share: a tiny random checkpoint, the demo model, artifacts of both."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# Two cores are all a test may count on; torch would start a thread for each it finds.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing is read from, or written to, the profiles of whoever runs the tests.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="pliant-config-")
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)

# Shells start background jobs with Ctrl-C ignored, which processes of tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def write_random_checkpoint(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A Llama-type checkpoint with random weights and a byte-level tokenizer, in HF layout."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from pliant.models import Supernet
    from pliant.spec import read_spec

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: place for place, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(words),
        "hidden_size": 48,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    supernet = Supernet.initialized(read_spec(config), seed)
    # Ten times the usual deviation, so that cuts and rounding show in the logits.
    with torch.no_grad():
        for weight in supernet.parameters():
            weight *= 10 if weight.ndim == 2 else 1
    save_file(supernet.to_checkpoint_tensors(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of four blocks; do not change its files."""
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random")


@pytest.fixture(scope="session")
def tale() -> Path:
    """The checkpoint folder of the demo model in the repository."""
    folders = sorted((ROOT / "models").glob("tale-*"))
    assert folders, "models/ holds no demo model"
    return folders[0]


@pytest.fixture(scope="session")
def random_artifact(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of `random_checkpoint`; do not change its files."""
    from pliant.recipes.build import build
    from pliant.recipes.build_options import BuildOptions

    output = tmp_path_factory.mktemp("artifacts") / "random.pliant"
    build(random_checkpoint, output, options=BuildOptions(windows=4, window_tokens=64))
    return output


@pytest.fixture(scope="session")
def tale_artifact(tale: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the demo model, built as a user would; do not change its files."""
    from pliant.recipes.build import build

    output = tmp_path_factory.mktemp("artifacts") / "tale.pliant"
    build(tale, output, calibration=tale / "calibration.txt")
    return output


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Small trained models beside the checkout; tests of them are skipped where it is missing."""
    folder = SHARED / "data" / "models"
    if not folder.is_dir():
        pytest.skip("the folder of shared models is not beside this checkout")
    return folder
