// Products by tables of sums of activations (lookup.h), for the paths without dot products.
#pragma once

#include "kernels/kernels.h"

namespace pliant {

// Tokens take turns at a tile; beyond so many, unpacked codes serve them better.
constexpr int kMostLookupTokens = 4;

// planes_int8 of the contract for up to kMostLookupTokens tokens; `scratch` holds as many bytes as
// the function below says, aligned to 64.
void multiply_by_lookup_avx2(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                             int tile_end, float* y, size_t y_stride, void* scratch);
void multiply_by_lookup_asimd(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                              int tile_end, float* y, size_t y_stride, void* scratch);

// Enough for any number of planes, and for fewer tokens.
size_t lookup_scratch_avx2(const PlaneMatrix& matrix, int tokens);
size_t lookup_scratch_asimd(const PlaneMatrix& matrix, int tokens);

}  // namespace pliant
