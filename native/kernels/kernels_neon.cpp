// The table of the NEON path.
#include "kernels/attention.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_f32.h"
#include "kernels/planes_int8.h"
#include "kernels/simd_neon.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {
using Vectors = VectorKernels<Neon>;
}

const Kernels kNeonKernels = {
    "neon",
    Vectors::quantize,
    planes_int8<Neon>,
    planes_int8_scratch<Neon>,
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
    coefficients_int8<Neon>,
    coefficients_f32<Neon>,
    coefficients_row,
    ternary_int8<Neon>,
    &kLowRankAsimd,
};

}  // namespace pliant
