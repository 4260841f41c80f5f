// The table of the path for ARM processors with the 8-bit matrix extension.
#include <algorithm>

#include "kernels/blocks_i8mm.h"
#include "kernels/neon_kernels.h"
#include "kernels/simd_i8mm.h"

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

}  // namespace

const Kernels kI8mmKernels =
    neon_kernels<NeonI8mm>("i8mm", planes_int8_i8mm, planes_int8_scratch_i8mm);

}  // namespace pliant
