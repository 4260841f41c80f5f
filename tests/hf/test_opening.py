"""`from_pretrained` of an artifact: the same function as our engine, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import pliant
from pliant.adapters import AdapterSpec, Factors
from pliant.artifact import Artifact
from pliant.errors import UnsupportedError, UsageError
from pliant.runtime import Chunk
from pliant.shape import SubnetShape

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("pliant.hf")

TOKENS = np.random.default_rng(0).integers(3, 300, 48).astype(np.int32)
#: fp32 sums in another order, a few blocks deep; logits have a deviation of 1.
TOLERANCE = 1e-4
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(path: Path | str, **named: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, threads=1, **named)


def logits_of(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()


def our_logits(path: Path, cut: str, activations: Any) -> Any:
    with pliant.open(path) as artifact:
        engine = artifact.engine(
            cut, threads=1, activations=activations, cache_type="float32"
        ).engine
        chunk = Chunk(TOKENS, engine.new_cache(len(TOKENS)), logits="all")
        return engine.forward_chunk([chunk])[0].copy()


@pytest.mark.parametrize(
    ("name", "cut"),
    [(name, "d3-w0.5-b3") for name in ("llama-3", "llama-biases", "mistral-window", "qwen2",
                                       "qwen3", "gemma2", "gemma3", "smollm3")]
    + [("llama", ""), ("qwen2", "b4")],
)  # fmt: skip
def test_stock_classes_on_our_kernels_compute_our_logits(name: str, cut: str, tiny: Make) -> None:
    path = tiny(name)
    address = f"{path}@{cut}" if cut else path
    model = opened(address, activations="float32")
    ours = our_logits(path, cut, "float32")
    np.testing.assert_allclose(logits_of(model), ours, rtol=0, atol=TOLERANCE)
    dense = [name for name, value in model.named_parameters() if value.ndim > 1]
    assert not dense, "every matrix lies in planes"
    assert model.config.quantization_config.subnet == cut


def apart(first: Any, second: Any) -> float:
    """RMS of the difference of logits over the RMS of logits, at the worst token."""
    ratio = ((first - second) ** 2).mean(axis=1) / (second**2).mean(axis=1)
    return float(np.sqrt(ratio).max())


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_int8_activations_are_those_of_the_engine_within_a_tolerance(name: str, tiny: Make) -> None:
    path = tiny(name)
    theirs, ours = logits_of(opened(path, subnet="d3-b4")), our_logits(path, "d3-b4", "int8")
    exact = our_logits(path, "d3-b4", "float32")
    # A norm summed in another order moves activations that sit on a rounding edge by one code: two
    # roundings of the same function, each about as far from it as ours is.
    allowed = 2 * apart(ours, exact)
    print(f"int8 differs by {apart(theirs, ours):.2e} of the RMS, {allowed:.2e} are allowed")
    assert apart(theirs, ours) <= allowed
    assert not np.allclose(theirs, exact, rtol=0, atol=TOLERANCE), "int8 is the default"


@pytest.fixture(scope="module")
def quick_tale(tale: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model rounded to nearest: trained, so that texts do not hang on ties."""
    from interop_models import quick_artifact

    return quick_artifact(tale, tmp_path_factory.mktemp("quick") / "tale.pliant").path


@pytest.mark.parametrize("cut", ["", "w0.5-b4"])
def test_generation_writes_the_tokens_of_our_engine(cut: str, quick_tale: Path) -> None:
    address = f"{quick_tale}@{cut}" if cut else str(quick_tale)
    tokenizer = transformers.AutoTokenizer.from_pretrained(address)
    model = opened(address, activations="float32")
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    with torch.no_grad():
        theirs = model.generate(
            input_ids=prompt.input_ids, max_new_tokens=48, min_new_tokens=1, do_sample=False
        )[0]
    with pliant.open(quick_tale) as artifact:
        engine = artifact.engine(cut, threads=1, activations="float32", cache_type="float32")
        ours = engine.generate("Once upon a time", max_tokens=48).tokens
    assert tuple(theirs[prompt.input_ids.shape[1] :].tolist()) == ours


def test_widths_of_their_own_are_filled_up_or_refused(tiny: Make) -> None:
    path = tiny("llama-biases", rope_theta=20_000.0)
    artifact = Artifact.open(path)
    subnet = artifact.subnet("d2-b4")
    shape = SubnetShape(subnet.shape.blocks, (1, 2), (128, 64))
    artifact.save_subnet("odd", msgspec.structs.replace(subnet, shape=shape))
    assert not shape.is_uniform
    with pytest.raises(UnsupportedError, match="blocks of different widths"):
        opened(path, subnet="odd", pad=False)
    model = opened(path, subnet="odd", activations="float32")
    ours = our_logits(path, "odd", "float32")
    np.testing.assert_allclose(logits_of(model), ours, rtol=0, atol=TOLERANCE)


def test_blocks_without_attention_are_refused(tiny: Make) -> None:
    path = tiny("llama-biases", rope_theta=30_000.0)
    artifact = Artifact.open(path)
    subnet = artifact.subnet("d2-b4")
    shape = SubnetShape(subnet.shape.blocks, (0, 2), (128, 128))
    artifact.save_subnet("half", msgspec.structs.replace(subnet, shape=shape))
    with pytest.raises(UnsupportedError, match="without attention"):
        opened(path, subnet="half")


@pytest.mark.parametrize(
    ("named", "error", "words"),
    [({"subnet": "d9"}, UsageError, "cannot be cut to 9 blocks"),
     ({"dtype": torch.bfloat16}, UnsupportedError, "leave dtype out"),
     ({"device_map": {"": "cuda:0"}}, UnsupportedError, "leave device_map out"),
     ({"activations": "int4"}, UsageError, "int8 or float32"),
     ({"quantization_config": {"quant_method": "pliant"}}, UsageError, "quantized already")],
)  # fmt: skip
def test_what_cannot_be_asked_for(
    named: dict[str, Any], error: type[Exception], words: str, tiny: Make
) -> None:
    with pytest.raises(error, match=words):
        opened(tiny("llama"), **named)


def test_a_cut_is_named_once(tiny: Make) -> None:
    with pytest.raises(UsageError, match="name one of them"):
        opened(f"{tiny('llama')}@d2", subnet="d3")
    assert opened(f"{tiny('llama')}@d2", subnet="d2").config.num_hidden_layers == 2


def test_gradients_and_other_devices_are_refused(tiny: Make) -> None:
    model = opened(tiny("llama"), subnet="d1-b4")
    loss = model(torch.tensor([[5, 6, 7]])).logits.sum()
    with pytest.raises(UnsupportedError, match="A gradient"):
        loss.backward()
    with pytest.raises(UnsupportedError, match="kernels run on the CPU"):
        model.model.layers[0].mlp.down_proj(torch.empty(1, 128, device="meta"))
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained("nowhere")


def test_other_folders_go_the_usual_way(tiny: Make, tmp_path: Path) -> None:
    checkpoint = tiny("llama").with_suffix("")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert isinstance(model.lm_head, torch.nn.Linear)
    with pytest.raises(OSError, match="nothing"):
        transformers.AutoConfig.from_pretrained(tmp_path / "nothing")
    config = transformers.AutoConfig.from_pretrained(f"{tiny('llama')}@d2-b4")
    assert config.num_hidden_layers == 2 and config.quantization_config["quant_method"] == "pliant"


def test_a_missing_package_is_named_with_its_command() -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "import importlib.util as util; found = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'transformers' else found(name)\n"
        "import pliant.errors\n"
        "try:\n    import pliant.hf\n"
        "except pliant.errors.UnsupportedError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'pliant[hf]'" in done.stdout, done.stderr


def test_updates_of_adapters_are_added(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def low_rank(artifact: Artifact, shape: SubnetShape) -> Any:
        def update(name: str, rows: int, columns: int) -> Factors:
            draw = np.random.default_rng([len(shape.blocks), *name.encode()])
            full_rows, full_columns = artifact.spec.tensors()[name]
            a_RI = draw.normal(0, full_columns**-0.5, (4, full_columns)).astype(np.float32)
            b_OR = draw.normal(0, 0.3, (full_rows, 4)).astype(np.float32)
            return Factors(a_RI[:, :columns], b_OR[:rows])

        return update

    path = tiny("llama")
    without = our_logits(path, "d3-w0.5-b4", "float32")
    monkeypatch.setattr(Artifact, "adapters", AdapterSpec(4, experts=1, top_k=1))
    monkeypatch.setattr(Artifact, "low_rank", low_rank)
    ours = our_logits(path, "d3-w0.5-b4", "float32")
    assert not np.allclose(ours, without, rtol=0, atol=0.1)
    theirs = logits_of(opened(path, subnet="d3-w0.5-b4", activations="float32"))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)
