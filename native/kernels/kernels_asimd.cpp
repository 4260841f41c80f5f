// The tables of the paths for ARM processors without dot products.
#include <algorithm>

#include "kernels/lookup_paths.h"
#include "kernels/neon_kernels.h"
#include "kernels/simd_asimd.h"

namespace pliant {
namespace {

// Where tables take fewer instructions than products (docs/how_it_works/kernel_paths.md).
constexpr int kMostLookupPlanes = 5, kMostTurnPlanes = 2;

void planes_int8_asimd(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                       int tile_end, float* y, size_t y_stride, void* scratch) {
  const int most_tokens = matrix.num_planes <= kMostTurnPlanes     ? kMostLookupTokens
                          : matrix.num_planes <= kMostLookupPlanes ? 1
                                                                   : 0;
  if (x.tokens <= most_tokens) {
    multiply_by_lookup_asimd(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  } else {
    planes_int8<Asimd>(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  }
}

void planes_int8_by_lookup(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                           int tile_end, float* y, size_t y_stride, void* scratch) {
  if (x.tokens <= kMostLookupTokens) {
    multiply_by_lookup_asimd(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  } else {
    planes_int8<Asimd>(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
  }
}

size_t scratch_of_either(const PlaneMatrix& matrix, int tokens) {
  return std::max(lookup_scratch_asimd(matrix, tokens), planes_int8_scratch<Asimd>(matrix, tokens));
}

}  // namespace

const Kernels kAsimdKernels = neon_kernels<Asimd>("asimd", planes_int8_asimd, scratch_of_either);
const Kernels kAsimdLookupKernels =
    neon_kernels<Asimd>("asimd_lookup", planes_int8_by_lookup, scratch_of_either);

}  // namespace pliant
