// The table of the AVX-512 VNNI path.
#include <algorithm>

#include "kernels/attention_codes.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_avx512.h"
#include "kernels/planes_f32.h"
#include "kernels/simd_avx512.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {

void planes_int8(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin, int tile_end,
                 float* y, size_t y_stride, void* scratch) {
  if (few_tokens(matrix.num_planes, x.tokens)) {
    multiply_few_tokens_avx512(matrix, x, tile_begin, tile_end, y, y_stride,
                               static_cast<float*>(scratch));
  } else {
    multiply_token_blocks_avx512(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  }
}

// Holds for every number of planes, so that the scratch of a full matrix serves its cuts.
size_t planes_int8_scratch(const PlaneMatrix& matrix, int tokens) {
  const size_t few =
      2 * sizeof(float) * size_t(matrix.groups()) * size_t(std::min(tokens, kMostFewTokens));
  return std::max(few, token_blocks_scratch_avx512(matrix, tokens));
}

using Vectors = VectorKernels<Avx512>;

}  // namespace

const Kernels kAvx512VnniKernels = {
    "avx512",
    Vectors::quantize,
    planes_int8,
    planes_int8_scratch,
    planes_f32<Avx512>,
    Vectors::sum_scales,
    decode_row_by_lanes,
    Vectors::rms_norm,
    Vectors::norm_quantize,
    Vectors::rotate,
    Vectors::gated,
    Vectors::add,
    Vectors::store,
    attend<Avx512>,
    coefficients_int8<Avx512>,
    coefficients_f32<Avx512>,
    coefficients_row,
    ternary_int8<Avx512>,
    &kLowRankAvx2,
    &kScoresAvx2,
};

}  // namespace pliant
