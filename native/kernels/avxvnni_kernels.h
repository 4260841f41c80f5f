// The table of the AVX-VNNI path: AVX2 but for the integer products. Compiled once for processors
// that have the instruction, and once for tests with its dot step computed from AVX2.
#pragma once

#include "kernels/attention_codes.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_avx2.h"
#include "kernels/planes_int8.h"
#include "kernels/simd_avxvnni.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {

constexpr Kernels avxvnni_kernels(const char* isa) {
  using Vectors = VectorKernels<Avx2>;
  return {
      isa,
      Vectors::quantize,
      planes_int8<AvxVnni>,
      planes_int8_scratch<AvxVnni>,
      planes_f32_avx2,
      Vectors::sum_scales,
      decode_row_by_lanes,
      Vectors::rms_norm,
      Vectors::norm_quantize,
      Vectors::rotate,
      Vectors::gated,
      Vectors::add,
      Vectors::store,
      attend<Avx2>,
      coefficients_int8<AvxVnni>,
      coefficients_f32<Avx2>,
      coefficients_row,
      ternary_int8<AvxVnni>,
      &kLowRankAvx2,
      &kScoresAvx2,
  };
}

}  // namespace
}  // namespace pliant
