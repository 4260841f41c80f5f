"""Calibration of a supernet on text: statistics, width orders, depth paths, sensitivities."""

from pliant.calibrate.block_error import BlockErrors, block_errors
from pliant.calibrate.depth import (
    CACHE_BYTES,
    DepthEvaluator,
    find_depth_paths,
    find_half_path,
    remeasured_paths,
)
from pliant.calibrate.loss import BATCH_SIZE, calibration_tokens, mean_loss, run_blocks
from pliant.calibrate.matrix_sensitivity import (
    matrix_sensitivities,
    output_errors,
    separate_sensitivities,
)
from pliant.calibrate.moments import SHARED_INPUTS, MomentStream, check_enough, moment_bytes
from pliant.calibrate.orders import block_order, find_width_orders, find_width_ranking
from pliant.calibrate.reconstruction import (
    BlockError,
    BlockReconstruction,
    ReconstructionOptions,
    random_block,
    reconstruction_bytes,
    reconstruction_seconds,
)
from pliant.calibrate.sensitivity import EncodedSource, decode_matrix, measure_sensitivities
from pliant.calibrate.statistics import (
    BlockStatistics,
    CalibrationStream,
    channel_statistics,
    gradient_statistics,
    stream_statistics,
)
from pliant.calibrate.transforms import TRANSFORMS, Transform

__all__ = [
    "BATCH_SIZE",
    "CACHE_BYTES",
    "SHARED_INPUTS",
    "TRANSFORMS",
    "BlockError",
    "BlockErrors",
    "BlockReconstruction",
    "BlockStatistics",
    "CalibrationStream",
    "DepthEvaluator",
    "EncodedSource",
    "MomentStream",
    "ReconstructionOptions",
    "Transform",
    "block_errors",
    "block_order",
    "calibration_tokens",
    "channel_statistics",
    "check_enough",
    "decode_matrix",
    "find_depth_paths",
    "find_half_path",
    "find_width_orders",
    "find_width_ranking",
    "gradient_statistics",
    "matrix_sensitivities",
    "mean_loss",
    "measure_sensitivities",
    "moment_bytes",
    "output_errors",
    "random_block",
    "reconstruction_bytes",
    "reconstruction_seconds",
    "remeasured_paths",
    "run_blocks",
    "separate_sensitivities",
    "stream_statistics",
]
