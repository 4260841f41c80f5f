"""`PlaneProduct`: one matrix of an artifact as a function of activations, outside the engine.

For hosts that run the decoder themselves, such as `transformers`: they keep attention, norms and
caches, and the products with weights are those of the engine's kernels on the mapped planes.

Shape suffixes: T tokens, O rows kept, I columns kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pliant import _native
from pliant.adapters import Factors
from pliant.errors import UsageError
from pliant.runtime.assembly import Activations, WeightSource, plane_form
from pliant.runtime.low_rank import decode_factors, encode_factors
from pliant.runtime.threads import usable_threads


class PlaneProduct:
    """The first `planes` planes of a matrix, of which `kept` rows and columns are used.

    - `name`: the matrix in the artifact, such as `blocks.3.down`; its planes stay mapped.
    - `activations`: "int8" rounds them per group of 64 as the engine does, "float32" does not.
    - `update`: low-rank factors that adapters add; rounded as the engine rounds them, added in
      fp32.

    `UsageError` for more planes, rows or columns than are stored and for unknown activations.
    """

    def __init__(
        self,
        source: WeightSource,
        name: str,
        kept: tuple[int, int],
        planes: int,
        *,
        activations: Activations = "int8",
        threads: int | None = None,
        update: Factors | None = None,
    ) -> None:
        stored, (rows, columns) = source.planes(name), source.spec.tensors()[name]
        if not 1 <= planes <= len(stored):
            raise UsageError(f"{planes} planes of {name} were asked for; {len(stored)} are stored.")
        if not (1 <= kept[0] <= rows and 1 <= kept[1] <= columns):
            raise UsageError(f"{kept} of {name} were asked for; [{rows}, {columns}] are stored.")
        if activations not in ("int8", "float32"):
            raise UsageError(f"Activations {activations!r} were asked for; use int8 or float32.")
        self.kept = kept
        self.name = name
        self._threads = usable_threads(threads)
        kernels, self._form = _native.kernels, plane_form(source)
        by_form = {
            "uniform": (kernels.planes_int8, kernels.planes_f32),
            "signs": (kernels.signs_int8, kernels.signs_f32),
        }
        self._kernel = by_form[self._form][0 if activations == "int8" else 1]
        self._path = str(kernels.best())
        self._planes, self._scales = stored[:planes], source.scales(name)
        self._stored_columns = columns
        self._update = None if update is None else decode_factors(encode_factors(update))

    def __call__(self, x_TI: NDArray[np.float32]) -> NDArray[np.float32]:
        """`W x` for each token: float32 `[T, I]` to float32 `[T, O]`."""
        x_TI = np.ascontiguousarray(x_TI, np.float32)
        if x_TI.ndim != 2 or x_TI.shape[1] != self.kept[1]:
            raise UsageError(f"{self.name} takes rows of {self.kept[1]}; found {list(x_TI.shape)}.")
        if not len(x_TI):
            return np.zeros((0, self.kept[0]), np.float32)
        y_TO: NDArray[np.float32] = self._kernel(
            self._path, self._planes, self._scales, *self.kept, self._stored_columns, x_TI,
            self._threads,
        )  # fmt: skip
        if self._update is not None:
            y_TO += (x_TI @ self._update.a_RI.T) @ self._update.b_OR.T
        return y_TO

    def rows(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows of the matrix, float32 `[T, I]`, as an embedding reads them.

        `UsageError` for an index that is not a row.
        """
        y_TI = np.empty((len(indices), self.kept[1]), np.float32)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.kept[0]:
            raise UsageError(
                f"{self.name} has rows 0 to {self.kept[0] - 1}; "
                f"{indices.min()} to {indices.max()} were asked for."
            )
        different, places = np.unique(indices, return_inverse=True)
        for place, index in enumerate(different.tolist()):
            y_TI[places == place] = self._row(index)
        return y_TI

    def _row(self, index: int) -> NDArray[np.float32]:
        shape = (*self.kept, self._stored_columns, index)
        if self._form == "signs":
            return _native.kernels.signs_row(self._planes, self._scales, *shape)
        return _native.kernels.decode_row(self._path, self._planes, self._scales, *shape)
