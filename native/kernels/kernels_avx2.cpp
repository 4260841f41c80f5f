// The table of the AVX2 path.
#include <algorithm>

#include "kernels/attention.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_avx2.h"
#include "kernels/simd_avx2.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {

void planes_int8(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin, int tile_end,
                 float* y, size_t y_stride, void* scratch) {
  if (few_tokens_avx2(matrix.num_planes, x.tokens)) {
    multiply_few_tokens_avx2(matrix, x, tile_begin, tile_end, y, y_stride,
                             static_cast<float*>(scratch));
  } else {
    multiply_token_blocks_avx2(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  }
}

// Holds for every number of planes, so that the scratch of a full matrix serves its cuts.
size_t planes_int8_scratch(const PlaneMatrix& matrix, int tokens) {
  const size_t few =
      2 * sizeof(float) * size_t(matrix.groups()) * size_t(std::min(tokens, kMostFewTokensAvx2));
  // One token is few for every number of planes.
  return tokens == 1 ? few : std::max(few, token_blocks_scratch_avx2(matrix, tokens));
}

using Vectors = VectorKernels<Avx2>;

}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",
    Vectors::quantize,
    planes_int8,
    planes_int8_scratch,
    planes_f32_avx2,
    Vectors::sum_scales,
    decode_row_by_lanes,
    Vectors::rms_norm,
    Vectors::norm_quantize,
    Vectors::rotate,
    Vectors::gated,
    Vectors::add,
    Vectors::store,
    attend<Avx2>,
    coefficients_int8<Avx2>,
    coefficients_f32<Avx2>,
    coefficients_row,
    ternary_int8<Avx2>,
    &kLowRankAvx2,
};

}  // namespace pliant
