// The table of the AVX2 path.
#include "kernels/attention.h"
#include "kernels/coefficients.h"
#include "kernels/paths.h"
#include "kernels/planes_f32.h"
#include "kernels/planes_int8.h"
#include "kernels/simd_avx2.h"
#include "kernels/ternary.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {
using Vectors = VectorKernels<Avx2>;
}

const Kernels kAvx2Kernels = {
    "avx2",
    Vectors::quantize,
    planes_int8<Avx2>,
    planes_int8_scratch<Avx2>,
    planes_f32<Avx2>,
    Vectors::sum_scales,
    decode_row_by_lanes,
    Vectors::rms_norm,
    Vectors::norm_quantize,
    Vectors::rotate,
    Vectors::gated,
    Vectors::add,
    Vectors::store,
    attend<Avx2>,
    coefficients_int8<Avx2>,
    coefficients_f32<Avx2>,
    coefficients_row,
    ternary_int8<Avx2>,
};

}  // namespace pliant
