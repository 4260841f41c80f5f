// The product of many tokens with the 8-bit matrix extension of ARM.
#pragma once

#include "kernels/kernels.h"

namespace pliant {

// planes_int8 of the contract for two tokens or more; `scratch` holds token_blocks_scratch_i8mm
// bytes, aligned to 64.
void multiply_token_blocks_i8mm(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                                int tile_end, float* y, size_t y_stride, void* scratch);
size_t token_blocks_scratch_i8mm(const PlaneMatrix& matrix, int tokens);

}  // namespace pliant
