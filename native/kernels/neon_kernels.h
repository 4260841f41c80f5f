// The table of a path of ARM processors: all but the integer products is the same on each.
#pragma once

#include "kernels/attention_codes.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_f32.h"
#include "kernels/planes_int8.h"
#include "kernels/simd_neon.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {

// `Simd` brings the dot products.
template <typename Simd>
constexpr Kernels neon_kernels(
    const char* isa, decltype(Kernels::planes_int8) product = planes_int8<Simd>,
    decltype(Kernels::planes_int8_scratch) scratch = planes_int8_scratch<Simd>) {
  using Vectors = VectorKernels<Neon>;
  return {
      isa,
      Vectors::quantize,
      product,
      scratch,
      planes_f32<Neon>,
      Vectors::sum_scales,
      decode_row_by_lanes,
      Vectors::rms_norm,
      Vectors::norm_quantize,
      Vectors::rotate,
      Vectors::gated,
      Vectors::add,
      Vectors::store,
      attend<Neon>,
      coefficients_int8<Simd>,
      coefficients_f32<Neon>,
      coefficients_row,
      ternary_int8<Simd>,
      &kLowRankAsimd,
      &kScoresAsimd,
  };
}

}  // namespace
}  // namespace pliant
