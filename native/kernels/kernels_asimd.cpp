// The table of the path for ARM processors without dot products.
#include "kernels/attention.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_f32.h"
#include "kernels/planes_int8.h"
#include "kernels/simd_asimd.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {
using Vectors = VectorKernels<Neon>;
}

const Kernels kAsimdKernels = {
    "asimd",
    Vectors::quantize,
    planes_int8<Asimd>,
    planes_int8_scratch<Asimd>,
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
    coefficients_int8<Asimd>,
    coefficients_f32<Neon>,
    coefficients_row,
    ternary_int8<Asimd>,
    &kLowRankAsimd,
};

}  // namespace pliant
