// The two halves of planes_int8 with AVX-512 VNNI: one token, and blocks of tokens.
#pragma once

#include "kernels/kernels.h"

namespace pliant {

// `scratch` holds 2 * matrix.groups() floats.
void multiply_one_token_avx512(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                               int tile_end, float* y, float* scratch);

// `scratch` holds token_blocks_scratch_avx512 bytes, aligned to 64.
void multiply_token_blocks_avx512(const PlaneMatrix& matrix, const Int8Activations& x,
                                  int tile_begin, int tile_end, float* y, size_t y_stride,
                                  void* scratch);
size_t token_blocks_scratch_avx512(const PlaneMatrix& matrix, int tokens);

}  // namespace pliant
