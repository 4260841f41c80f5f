// The two halves of planes_int8 with AVX-512 VNNI: a few tokens, and blocks of many.
#pragma once

#include "kernels/kernels.h"

namespace pliant {

// Where few tokens end and blocks begin, for speed (measured: benchmarks/kernels.py).
constexpr int kMostFewTokens = 4;
constexpr bool few_tokens(int num_planes, int tokens) {
  return tokens <= (num_planes <= 4 ? kMostFewTokens : 2);
}

// For few_tokens only. `scratch` holds 2 * groups * tokens floats.
void multiply_few_tokens_avx512(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                                int tile_end, float* y, size_t y_stride, float* scratch);

// `scratch` holds token_blocks_scratch_avx512 bytes, aligned to 64.
void multiply_token_blocks_avx512(const PlaneMatrix& matrix, const Int8Activations& x,
                                  int tile_begin, int tile_end, float* y, size_t y_stride,
                                  void* scratch);
size_t token_blocks_scratch_avx512(const PlaneMatrix& matrix, int tokens);

}  // namespace pliant
