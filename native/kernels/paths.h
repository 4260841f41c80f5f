// The tables of the instruction-set paths, known only to the dispatch and to themselves.
#pragma once

#include "kernels/kernels.h"

namespace pliant {

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;        // AVX2, FMA, F16C
extern const Kernels kAvx512VnniKernels;  // AVX-512 F, BW, DQ, VL, VNNI
extern const Kernels kNeonKernels;        // ARMv8.2 with dot product

// decode_row of every path but the scalar one.
void decode_row_by_lanes(const PlaneMatrix& matrix, int row, float* y);

// Independent dot-product instructions, `repeats` times; nothing is returned.
constexpr int kDotsPerRepeat = 12;
void repeat_dots_avx2(int64_t repeats);
void repeat_dots_avx512(int64_t repeats);

}  // namespace pliant
