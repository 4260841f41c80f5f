// The tables of the instruction-set paths, known only to the dispatch and to themselves.
#pragma once

#include "kernels/kernels.h"
#include "kernels/low_rank.h"
#include "kernels/scores.h"

namespace pliant {

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;         // AVX2, FMA, F16C
extern const Kernels kAvx2LookupKernels;   // the same, few tokens by tables (lookup.h)
extern const Kernels kAvxVnniKernels;      // that, with 256-bit VNNI
extern const Kernels kAvx512VnniKernels;   // AVX-512 F, BW, DQ, VL, VNNI
extern const Kernels kAsimdKernels;        // any 64-bit ARM
extern const Kernels kAsimdLookupKernels;  // the same, few tokens by tables (lookup.h)
extern const Kernels kNeonKernels;         // ARMv8.2 with dot product
extern const Kernels kI8mmKernels;         // that, with 8-bit matrix products (ARMv8.6)

// decode_row of every path but the scalar one.
void decode_row_by_lanes(const PlaneMatrix& matrix, int row, float* y);

// The definition of the products with coefficients (coefficients_scalar.cpp); of
// coefficients_row there is no other: a row is read for one token only.
void coefficients_int8_scalar(const CoefficientMatrix& matrix, const Int8Activations& x,
                              int tile_begin, int tile_end, float* y, size_t y_stride);
void coefficients_f32_scalar(const CoefficientMatrix& matrix, const float* x, int tokens,
                             size_t x_stride, int tile_begin, int tile_end, float* y,
                             size_t y_stride);
void coefficients_row(const CoefficientMatrix& matrix, int row, float* y);

// The definition of the product with ternary weights (ternary_scalar.cpp).
void ternary_int8_scalar(const TernaryMatrix& matrix, const Int8Activations& x, int tile_begin,
                         int tile_end, float* y, size_t y_stride);

// Independent dot-product instructions, `repeats` times; nothing is returned.
constexpr int kDotsPerRepeat = 12;
void repeat_dots_avx2(int64_t repeats);
void repeat_dots_avx512(int64_t repeats);

}  // namespace pliant
