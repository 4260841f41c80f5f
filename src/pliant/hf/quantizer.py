"""`PliantConfig` and `PliantQuantizer`: planes of an artifact as a quantization of `transformers`.

The quantizer replaces the embedding, every linear layer and the head of a model that is still
without weights; what is left to load are norms and biases (`small_tensors`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from pliant.adapters import Factors
from pliant.artifact import Artifact
from pliant.errors import UnsupportedError
from pliant.export.dense import DenseWeights
from pliant.export.hf_config import held_by_transformers
from pliant.hf.modules import PlaneEmbedding, PlaneLinear
from pliant.runtime.assembly import Activations
from pliant.runtime.plane_product import PlaneProduct
from pliant.spec.checkpoint_names import checkpoint_names, head_name

METHOD = "pliant"


class PliantConfig(QuantizationConfigMixin):
    """Which cut of which artifact, and how its products are computed.

    `artifact` is the folder, `subnet` an address or the name of a saved cut, `activations` and
    `threads` those of an engine, `pad` whether widths that the target cannot hold are filled up
    with zeros or refused.
    """

    def __init__(
        self,
        artifact: str,
        subnet: str = "",
        activations: Activations = "int8",
        threads: int | None = None,
        pad: bool = True,
        quant_method: str = METHOD,
    ) -> None:
        self.quant_method: Any = quant_method
        self.artifact = artifact
        self.subnet = subnet
        self.activations = activations
        self.threads = threads
        self.pad = pad


class PliantQuantizer(HfQuantizer):
    """Puts modules on planes in place of a model's own; inference on the CPU in float32 only."""

    requires_calibration = False

    def validate_environment(self, *arguments: Any, **named: Any) -> None:
        """`UnsupportedError` where weights are to lie elsewhere than on the CPU."""
        require_cpu_map(named.get("device_map"))

    def update_device_map(self, device_map: Any) -> Any:
        """All on the CPU; without a map `transformers` does not need accelerate."""
        return None

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """float32; `UnsupportedError` for another type."""
        if dtype != torch.float32:
            raise UnsupportedError(
                f"dtype {dtype} was asked for; between products with planes activations are "
                "float32: leave dtype out. `pliant export --type` writes dense weights of a type."
            )
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **named: Any) -> Any:
        weights = opened(cast(PliantConfig, self.quantization_config))
        for path, module in _modules(model, weights, cast(PliantConfig, self.quantization_config)):
            model.set_submodule(path, module)
        return model

    def is_serializable(self, *arguments: Any, **named: Any) -> bool:
        """The artifact is the stored form; `save_pretrained` is refused."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Products with planes have no gradient."""
        return False


def require_cpu_map(places: Any) -> None:
    """`UnsupportedError` for a `device_map` that puts anything elsewhere than on the CPU."""
    devices = set(places.values()) if isinstance(places, dict) else {places}
    if not {str(device) for device in devices} <= {"None", "cpu", "auto"}:
        raise UnsupportedError(
            f"device_map {places} was asked for; the kernels of planes run on the CPU: leave "
            "device_map out."
        )


def opened(config: PliantConfig) -> DenseWeights:
    """The cut of a config with the widths at which `transformers` holds it.

    `UnsupportedError` where it cannot hold it.
    """
    artifact = Artifact.open(config.artifact)
    subnet = artifact.subnet(config.subnet)
    if not subnet.shape.has_whole_blocks:
        raise UnsupportedError(
            "The subnet has blocks without attention or without MLP, which the classes of "
            "transformers do not build over planes; the nearest they can hold keeps these blocks "
            "whole: cut d and w in place of h and g, or export it, which fills up with zeros."
        )
    return DenseWeights(artifact, subnet, held_by_transformers(subnet, config.pad))


def small_tensors(weights: DenseWeights) -> dict[str, torch.Tensor]:
    """Norms and biases by the names that `transformers` gives them, float32."""
    names = checkpoint_names(weights.spec)
    return {
        names[name]: torch.from_numpy(weights.tensor(name).copy())
        for name, shape in weights.shapes().items()
        if len(shape) == 1
    }


def _modules(
    model: Any, weights: DenseWeights, config: PliantConfig
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Path in `model` and replacement of everything that holds a matrix."""
    names, subnet, artifact = checkpoint_names(weights.spec), weights.subnet, weights.artifact
    update = artifact.low_rank(subnet.shape)

    def product(
        stored: str, kept: tuple[int, ...], planes: int, factors: Factors | None = None
    ) -> PlaneProduct:
        return PlaneProduct(
            artifact, stored, (kept[0], kept[1]), planes,
            activations=config.activations, threads=config.threads, update=factors,
        )  # fmt: skip

    vocabulary = (subnet.spec.vocab_size, subnet.spec.hidden_size)
    embedding = _module_path(names["embedding"])
    # Gemma's class multiplies by the scale itself, so its replacement must.
    scale = float(getattr(model.get_submodule(embedding), "scalar_embed_scale", 1.0))
    yield embedding, PlaneEmbedding(product("embedding", vocabulary, subnet.bits.embedding), scale)
    stored_head = "embedding" if subnet.spec.tied_embeddings else "head"
    head = product(stored_head, vocabulary, subnet.bits.head)
    yield _module_path(head_name(names)), PlaneLinear(head, vocabulary, bias=False)
    for name, held in weights.shapes().items():
        if not name.startswith("blocks.") or len(held) == 1:
            continue
        stored, planes, kept = weights.origin(name)
        factors = None if update is None else update(stored, kept[0], kept[1])
        linear = PlaneLinear(
            product(stored, kept, planes, factors), (held[0], held[1]),
            bias=f"{name}.bias" in weights.shapes(),
        )  # fmt: skip
        yield _module_path(names[name]), linear


def _module_path(tensor: str) -> str:
    return tensor.removesuffix(".weight")
