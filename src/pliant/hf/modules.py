"""Modules of torch whose weights are planes of an artifact.

A host may be wider than the cut (`held` above `kept`): inputs beyond the kept columns are not read
and outputs beyond the kept rows are zero, as if the matrix were filled up with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pliant.errors import UnsupportedError
from pliant.runtime.plane_product import PlaneProduct


class PlaneLinear(nn.Module):
    """`y = W x + bias` on the planes of a matrix; `[..., in_features]` to `[..., out_features]`.

    Computed in float32 on the CPU, the result in the type of the input. `UnsupportedError` for
    tensors elsewhere and where a gradient is asked for.
    """

    def __init__(self, product: PlaneProduct, held: tuple[int, int], bias: bool) -> None:
        super().__init__()
        self.product = product
        self.out_features, self.in_features = held
        shape = torch.empty(self.out_features, dtype=torch.float32)
        self.bias = nn.Parameter(shape, requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """The product with each vector of the last axis."""
        rows, columns = self.product.kept
        kept = x.reshape(-1, self.in_features)[:, :columns]
        y: Tensor = _Product.apply(kept, self.product)
        if self.out_features != rows:
            y = nn.functional.pad(y, (0, self.out_features - rows))
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` says of it."""
        return f"{self.in_features}, {self.out_features}, {self.product.name}"


class PlaneEmbedding(nn.Module):
    """Rows of a matrix of planes times `scale`: ids `[...]` to float32 `[..., hidden]`."""

    def __init__(self, product: PlaneProduct, scale: float = 1.0) -> None:
        super().__init__()
        self.product = product
        self.num_embeddings, self.embedding_dim = product.kept
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """The row of each id."""
        _require_cpu(ids)
        rows = torch.from_numpy(self.product.rows(ids.detach().reshape(-1).numpy()))
        return rows.reshape(*ids.shape, self.embedding_dim) * self.scale

    def extra_repr(self) -> str:
        """What `print(model)` says of it."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.product.name}"


class _Product(torch.autograd.Function):
    """The kernels under torch; there is no gradient, and asking for one must not give zeros."""

    @staticmethod
    def forward(context: Any, x: Tensor, product: PlaneProduct) -> Tensor:
        """`[tokens, columns]` to float32 `[tokens, rows]`."""
        _require_cpu(x)
        values = x.detach().to(torch.float32).contiguous().numpy()
        return torch.from_numpy(np.ascontiguousarray(product(values)))

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        """Refuse."""
        raise UnsupportedError(
            "A gradient was asked for; products with bit-planes have none. To train, tune shapes "
            "with `pliant tune-shapes`, or export dense weights with `pliant export`."
        )


def _require_cpu(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise UnsupportedError(
            f"A tensor on {tensor.device} reached a product with bit-planes, whose kernels run on "
            "the CPU; leave the model there, or export dense weights with `pliant export`."
        )
