"""A tiny random model with a byte tokenizer: as a checkpoint, and as an artifact without torch."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pliant.artifact import (
    Alignment,
    ArtifactWriter,
    Findings,
    SourceRecord,
    SpecialTokens,
)
from pliant.bits import codecs
from pliant.cli import main
from pliant.sensitivities import Sensitivities
from pliant.shape import DepthPath
from pliant.shape.depth import DepthChoice
from pliant.spec import ModelSpec
from pliant.spec.huggingface import read_spec

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 258,
    "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 257,
    "torch_dtype": "float32",
}  # fmt: skip
SPEC: ModelSpec = read_spec(CONFIG)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
TEXT = "The quick brown fox jumps over the lazy dog, and the dog — naïvely — sleeps on.\n" * 12


def hf_tensors() -> dict[str, NDArray[np.float32]]:
    """Random weights under the names of a Llama checkpoint; the same on every call."""
    random = np.random.default_rng(0)
    hidden, ffn, head = 64, 192, 16
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (258, hidden),
        "model.norm.weight": (hidden,),
    }
    for block in range(3):
        prefix = f"model.layers.{block}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (4 * head, hidden),
            prefix + "self_attn.k_proj.weight": (2 * head, hidden),
            prefix + "self_attn.v_proj.weight": (2 * head, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, 4 * head),
            prefix + "mlp.gate_proj.weight": (ffn, hidden),
            prefix + "mlp.up_proj.weight": (ffn, hidden),
            prefix + "mlp.down_proj.weight": (hidden, ffn),
        }
    return {
        name: (np.ones(shape) if len(shape) == 1 else random.normal(0, 0.1, shape)).astype("f4")
        for name, shape in shapes.items()
    }


PLIANT_NAMES = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
    "self_attn.o_proj": "o", "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm",
}  # fmt: skip


def pliant_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "embedding"
    if name == "model.norm.weight":
        return "final_norm"
    _, _, block, rest = name.removesuffix(".weight").split(".", 3)
    return f"blocks.{block}.{PLIANT_NAMES[rest]}"


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes: every text can be encoded and every byte sequence decoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 256}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    ids = {"bos_token_id": 256, "eos_token_id": 257}
    (folder / "generation_config.json").write_text(json.dumps(ids))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder)
    save_file(hf_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def findings() -> Findings:
    keep = ((0, 1, 2), (0, 2), (0,))
    path = DepthPath("amoeba", tuple(DepthChoice(blocks, 9.0 - len(blocks)) for blocks in keep), 3)
    return Findings(
        source=SourceRecord("tiny", "0" * 64),
        tokens=SpecialTokens(bos=256, eos=(257,)),
        alignment=Alignment(64),
        depth_paths={"amoeba": path},
        default_depth_method="amoeba",
        sensitivities=Sensitivities(
            dense_loss=6.0,
            depth={3: 6.0, 2: 7.0, 1: 8.0},
            width={1.0: 6.0, 0.5: 6.6},
            planes={planes: 6.0 + 0.5 ** (planes - 2) for planes in range(1, 8)} | {8: 6.0},
            vocabulary_planes={2: 7.5, 4: 6.2, 6: 6.05, 8: 6.0},
        ),
        tokenizer_files=TOKENIZER_FILES,
    )


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The artifact of the checkpoint, with golden logits; no test may change it."""
    from pliant.evaluate import golden_texts_json, record_golden, record_golden_texts
    from pliant.runtime import Engine
    from pliant.runtime import Tokenizer as Reader

    path = tmp_path_factory.mktemp("artifact") / "tiny.pliant"
    codec = codecs["uniform"]
    with ArtifactWriter(path, SPEC) as writer:
        for name, weight in hf_tensors().items():
            if weight.ndim == 1:
                writer.write_vector(pliant_name(name), weight)
            else:
                encoded = codec.encode(weight, name)
                writer.write_matrix(pliant_name(name), encoded)
        for file in ("config.json", *TOKENIZER_FILES):
            writer.copy_file(checkpoint / file)
        artifact = writer.finish(findings())
    with Engine(artifact, artifact.subnet(), threads=1) as engine:
        golden = [record_golden(engine, "", engine.kernels)]
    with Engine(
        artifact, artifact.subnet(), threads=1, activations="float32", cache_type="float32"
    ) as engine:
        texts = record_golden_texts(engine, Reader.load(path), artifact.num_planes)
    files = {
        "golden.json": msgspec.json.encode(golden),
        "golden_texts.json": golden_texts_json(texts),
    }
    artifact.amend(findings(), files)
    return path


@pytest.fixture
def artifact(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may change."""
    import shutil

    return Path(shutil.copytree(pristine, tmp_path / "tiny.pliant"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


class Ran:
    """What a run of the program printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def data(self) -> Any:
        """The JSON object on stdout."""
        return json.loads(self.out)


@pytest.fixture
def pliant(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the program in this process: `pliant("cut", path, "--bits", 3)`."""

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return run


_FOUND = importlib.util.spec_from_file_location(
    "hub_server", Path(__file__).parent / "hub_server.py"
)
assert _FOUND is not None and _FOUND.loader is not None
hub_server = importlib.util.module_from_spec(_FOUND)
_FOUND.loader.exec_module(hub_server)


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub without the repository; the client may use the network, which is this machine."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # What arrives in part of a chunk is lost when a transfer breaks; the files here are small.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    # The client waits a second before it goes on with a transfer that broke.
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    server = hub_server.HubServer()
    monkeypatch.setenv("PLIANT_ENDPOINT", server.url)
    yield server
    server.close()


@pytest.fixture
def engine_here(monkeypatch: Any) -> None:
    """The engine of transformers in this process: starting another takes seconds each time."""
    from pliant.export import target_engine

    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(target_engine._FOLDER))

    class Here(target_engine.TargetEngine):
        def __init__(self, target: str, path: Path, python: Any = None, threads: int = 1) -> None:
            self._engine = importlib.import_module(f"{target}_engine").Engine()
            loaded = self._ask("load", path=str(path.resolve()), threads=threads)
            self.engine, self.seconds = loaded["engine"], loaded["seconds"]
            self.context = loaded["context"]

        def _ask(self, action: str, **request: Any) -> dict[str, Any]:
            return dict(getattr(self._engine, action)(**json.loads(json.dumps(request))))

        def close(self) -> None:
            """Nothing was started."""

    monkeypatch.setattr("pliant.recipes.verify_target.TargetEngine", Here)
