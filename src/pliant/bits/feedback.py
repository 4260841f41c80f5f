"""`ErrorFeedback`: what rounding one column costs is paid back by the columns still to come.

The inputs x of a matrix W have the second moment `H = E[x xᵀ]`, so an error D in the weights costs
`tr(D H Dᵀ)` at the output. Columns are rounded one after another; after each, the columns left move
to where they undo most of its error (GPTQ, arXiv 2210.17323): with U the upper Cholesky factor of
`(H + damping)⁻¹`,

    error = (w - w') / U[j, j]        w[j:] -= error · U[j, j:]

Nothing is known here of codes: a codec gives a function that rounds one column. Several levels of
one code can be swept together, each with targets of its own, which is what nested planes need.
Shape suffixes: K levels, O rows, I columns, J the columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError

#: Damping in units of the mean of diag H, as GPTQ; where it is not enough it is raised tenfold.
DAMPING = 0.01
_RAISES = 6
#: Columns whose errors are applied to the ones behind them in one product: small beside L2.
_BLOCK_COLUMNS = 64

Float = NDArray[np.float64]
#: `round_column(column, target_KO)` stores the code of a column and returns what each level of it
#: stands for, fp64 `[K, O]`.
RoundColumn = Callable[[int, Float], Float]
#: `begin(column, target_KOJ)` sees columns from `column` on before they are rounded.
BeginColumns = Callable[[int, Float], None]


@dataclass(frozen=True, eq=False)
class ErrorFeedback:
    """The damped second moment of a matrix's inputs, ready for sweeps over its columns.

    `factor_II` is the upper Cholesky factor U, fp64; `importance_I` the diagonal of H, by which a
    scale is chosen; `damping` what was used, in units of the mean of that diagonal.
    """

    factor_II: Float
    importance_I: Float
    damping: float

    @classmethod
    def of(cls, moment_II: Float, name: str = "matrix", damping: float = DAMPING) -> ErrorFeedback:
        """Factorize `H`, fp64 `[I, I]`, symmetric; `moment_II` is left as it is.

        Columns that were never active (0 on the diagonal) get the mean of the others and take no
        part in feedback: their weights are rounded to nearest. `DataError` where H is not finite,
        or singular beyond any damping.
        """
        if not np.isfinite(moment_II).all():
            raise DataError(
                f"The inputs of {name} on the calibration text have moments that are not finite; "
                "the checkpoint is damaged, or give another calibration text."
            )
        importance_I = moment_II.diagonal().copy()
        is_dead_I = importance_I <= 0
        mean = float(importance_I[~is_dead_I].mean()) if not is_dead_I.all() else 1.0
        importance_I[is_dead_I] = mean
        for _ in range(_RAISES):
            try:
                factor_II = _inverse_factor(moment_II, importance_I + damping * mean)
            except np.linalg.LinAlgError:
                damping *= 10
                continue
            return cls(factor_II, importance_I, damping)
        raise DataError(
            f"The moments of the inputs of {name} are singular even with {damping / 10:g} times "
            "their mean added; the calibration text is too uniform. Give another text, or round "
            "to nearest."
        )

    def sweep(
        self,
        weight_OI: NDArray[np.floating],
        round_column: RoundColumn,
        levels: int,
        begin: BeginColumns | None = None,
        begin_columns: int = _BLOCK_COLUMNS,
    ) -> Float:
        """Round all columns in order; the error `tr(D H Dᵀ)` each level ends with, fp64 `[K]`.

        Before each `begin_columns` columns (a divisor of 64) `begin` is shown what they have become
        by then, fp64 `[K, O, begin_columns or what is left]`, so that scales can be fitted to it.
        Rows do not depend on each other. Holds `levels` copies of the weights in fp64.
        """
        if begin is not None and _BLOCK_COLUMNS % begin_columns != 0:
            raise ValueError(f"{begin_columns} columns do not divide {_BLOCK_COLUMNS}.")
        rows, columns = weight_OI.shape
        left_KOI = np.repeat(weight_OI.astype(np.float64)[None], levels, axis=0)
        total_K = np.zeros(levels)
        for first in range(0, columns, _BLOCK_COLUMNS):
            last = min(first + _BLOCK_COLUMNS, columns)
            error_KOJ = np.empty((levels, rows, last - first))
            for column in range(first, last):
                if begin is not None and column % begin_columns == 0:
                    begin(column, left_KOI[:, :, column : min(column + begin_columns, last)])
                target_KO = left_KOI[:, :, column]
                pivot = self.factor_II[column, column]
                error_KO = (target_KO - round_column(column, target_KO)) / pivot
                error_KOJ[:, :, column - first] = error_KO
                ahead = slice(column + 1, last)
                left_KOI[:, :, ahead] -= error_KO[:, :, None] * self.factor_II[column, ahead]
            left_KOI[:, :, last:] -= error_KOJ @ self.factor_II[first:last, last:]
            total_K += np.square(error_KOJ).sum(axis=(1, 2))
        return total_K


def _inverse_factor(moment_II: Float, diagonal_I: Float) -> Float:
    """Upper Cholesky factor of the inverse of `moment_II` with another diagonal."""
    damped_II = moment_II.copy()
    np.fill_diagonal(damped_II, diagonal_I)
    # With all axes reversed, lower · lowerᵀ = H gives upper · upperᵀ = H, and U is upper⁻¹.
    lower_II = np.linalg.cholesky(damped_II[::-1, ::-1])
    upper_II = lower_II[::-1, ::-1]
    factor_II: Float = np.triu(np.linalg.inv(upper_II))
    if not np.isfinite(factor_II).all():
        raise np.linalg.LinAlgError("the inverse is not finite")
    return factor_II
