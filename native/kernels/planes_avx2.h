// Products of planes with AVX2; int8 in two halves: a few tokens, and blocks of many.
#pragma once

#include "kernels/kernels.h"

namespace pliant {

// Where few tokens end and blocks begin, for speed (measured: benchmarks/kernels.py). Bytes made
// once pay from the second token, unless there are so few planes that making them is the work.
constexpr int kMostFewTokensAvx2 = 4;
constexpr bool few_tokens_avx2(int num_planes, int tokens) {
  return tokens <= (num_planes == 1 ? kMostFewTokensAvx2 : num_planes == 2 ? 3 : 1);
}

// For few_tokens_avx2 only. `scratch` holds 2 * groups * tokens floats.
void multiply_few_tokens_avx2(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                              int tile_end, float* y, size_t y_stride, float* scratch);

// `scratch` holds token_blocks_scratch_avx2 bytes, aligned to 64.
void multiply_token_blocks_avx2(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                                int tile_end, float* y, size_t y_stride, void* scratch);
size_t token_blocks_scratch_avx2(const PlaneMatrix& matrix, int tokens);

// planes_f32 of the contract.
void planes_f32_avx2(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                     int tile_begin, int tile_end, float* y, size_t y_stride);

}  // namespace pliant
