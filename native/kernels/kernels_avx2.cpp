// The tables of the AVX2 paths.
#include <algorithm>

#include "kernels/attention_codes.h"
#include "kernels/coefficients.h"
#include "kernels/lookup_paths.h"
#include "kernels/paths.h"
#include "kernels/planes_avx2.h"
#include "kernels/simd_avx2.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {

// Tables win for one plane alone (measured: benchmarks/kernels.py with either path), and only where
// enough tiles share the work of making them.
constexpr int kFewestLookupTiles = 8;

void planes_int8(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin, int tile_end,
                 float* y, size_t y_stride, void* scratch) {
  if (!few_tokens_avx2(matrix.num_planes, x.tokens)) {
    multiply_token_blocks_avx2(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  } else if (matrix.num_planes == 1 && tile_end - tile_begin >= kFewestLookupTiles) {
    multiply_by_lookup_avx2(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  } else {
    multiply_few_tokens_avx2(matrix, x, tile_begin, tile_end, y, y_stride,
                             static_cast<float*>(scratch));
  }
}

void planes_int8_by_lookup(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                           int tile_end, float* y, size_t y_stride, void* scratch) {
  if (x.tokens <= kMostLookupTokens) {
    multiply_by_lookup_avx2(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  } else {
    multiply_token_blocks_avx2(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  }
}

// Holds for every number of planes, so that the scratch of a full matrix serves its cuts.
size_t planes_int8_scratch(const PlaneMatrix& matrix, int tokens) {
  // Tables are larger than the factors of multiply_few_tokens_avx2, for as many tokens.
  static_assert(kMostFewTokensAvx2 <= kMostLookupTokens);
  const size_t few = lookup_scratch_avx2(matrix, tokens);
  // One token is few for every number of planes.
  return tokens == 1 ? few : std::max(few, token_blocks_scratch_avx2(matrix, tokens));
}

using Product = decltype(Kernels::planes_int8);

constexpr Kernels avx2_kernels(const char* isa, Product product) {
  using Vectors = VectorKernels<Avx2>;
  return {
      isa,
      Vectors::quantize,
      product,
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
      &kScoresAvx2,
  };
}

}  // namespace

const Kernels kAvx2Kernels = avx2_kernels("avx2", planes_int8);
const Kernels kAvx2LookupKernels = avx2_kernels("avx2_lookup", planes_int8_by_lookup);

}  // namespace pliant
