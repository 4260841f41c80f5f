// Planes times fp32 activations with AVX2, apart from the table so that they compile side by side.
#include "kernels/planes_avx2.h"
#include "kernels/planes_f32.h"
#include "kernels/simd_avx2.h"

namespace pliant {

void planes_f32_avx2(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                     int tile_begin, int tile_end, float* y, size_t y_stride) {
  planes_f32<Avx2>(matrix, x, tokens, x_stride, tile_begin, tile_end, y, y_stride);
}

}  // namespace pliant
