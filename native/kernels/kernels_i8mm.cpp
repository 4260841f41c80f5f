// The table of the path for ARM processors with the 8-bit matrix extension.
#include <algorithm>

#include "kernels/attention.h"
#include "kernels/blocks_i8mm.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_f32.h"
#include "kernels/planes_int8.h"
#include "kernels/simd_i8mm.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {

// A matrix product takes two tokens at least; one is multiplied as the NEON path does.
void planes_int8_i8mm(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                      int tile_end, float* y, size_t y_stride, void* scratch) {
  if (x.tokens == 1) {
    planes_int8<NeonI8mm>(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  } else {
    multiply_token_blocks_i8mm(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  }
}

size_t planes_int8_scratch_i8mm(const PlaneMatrix& matrix, int tokens) {
  return std::max(planes_int8_scratch<NeonI8mm>(matrix, 1),
                  token_blocks_scratch_i8mm(matrix, tokens));
}

using Vectors = VectorKernels<Neon>;

}  // namespace

const Kernels kI8mmKernels = {
    "i8mm",
    Vectors::quantize,
    planes_int8_i8mm,
    planes_int8_scratch_i8mm,
    planes_f32<Neon>,
    Vectors::sum_scales,
    decode_row_by_lanes,
    Vectors::rms_norm,
    Vectors::norm_quantize,
    Vectors::rotate,
    Vectors::gated,
    Vectors::add,
    Vectors::store,
    attend<Neon>,
    coefficients_int8<NeonI8mm>,
    coefficients_f32<Neon>,
    coefficients_row,
    ternary_int8<Neon>,
    &kLowRankAsimd,
};

}  // namespace pliant
