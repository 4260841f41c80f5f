"""llama.cpp's block types in `bits.py`: the same weights through its own quantizer.

`peer_ggml_types.py` does it in an interpreter that has llama-cpp-python. The importance matrix is
of the same calibration text as everybody's. Blocks of 256 do not divide the rows of small models,
so there are two kinds of rows: `Q4_K_M` has the types that llama.cpp mixes in a model whose rows
do divide, with blocks that reach over into the next row; `Q4_K_M stored` is what `llama-quantize`
makes of this very model, where it falls back to types of blocks of 32, or to F16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peer_process import PeerProcess

SCRIPT = Path(__file__).with_name("peer_ggml_types.py")
HINT = "--peer-python needs llama-cpp-python and gguf."
#: File types, each a mix of block types that llama.cpp chooses.
FILE_TYPES = ("TQ2_0", "Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M")
#: Those of which the row that llama.cpp would store is shown too.
STORED = ("Q2_K", "Q3_K_M", "Q4_K_M")
#: Block types that all matrices get alike.
BLOCK_TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS",
               "IQ4_NL", "Q4_K", "Q5_K")  # fmt: skip
#: Sizes of rows that blocks of 256 divide, for asking what llama.cpp would mix.
_DIVISIBLE = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": None}


def quantized_by_llama_cpp(
    python: str,
    config: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.float32]],
    importance: Mapping[str, NDArray[np.float64]],
) -> Iterator[tuple[str, float, dict[str, torch.Tensor]]]:
    """Method, effective bits and the matrices of all blocks, for every type.

    `importance[name]` is the mean square of each input of the matrix `name`.
    """
    arrays: dict[str, Any] = {f"weight:{name}": weight for name, weight in weights.items()}
    arrays |= {f"importance:{name}": importance[name] for name in weights}
    with tempfile.TemporaryDirectory() as folder, PeerProcess(python, SCRIPT, HINT) as peer:
        source, target = (str(Path(folder) / name) for name in ("dense.npz", "rounded.npz"))
        np.savez(source, **arrays)
        wanted: dict[str, dict[str, str]] = {}
        for kind in FILE_TYPES:
            joined = {**config, **_DIVISIBLE}
            wanted[kind] = peer.ask("file_types", config=joined, file_type=kind)["kinds"]
            if kind in STORED:
                stored = peer.ask("file_types", config=dict(config), file_type=kind)["kinds"]
                wanted[f"{kind} stored"] = stored
        wanted |= {f"{kind} alone": dict.fromkeys(weights, kind) for kind in BLOCK_TYPES}
        for method, kinds in wanted.items():
            found = peer.ask("quantize", source=source, target=target, kinds=kinds)
            with np.load(target) as rounded:
                matrices = {name: torch.from_numpy(rounded[name]) for name in rounded.files}
            yield method, found["bits"], matrices
