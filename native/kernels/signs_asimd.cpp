#include "kernels/signs_simd.h"
#include "kernels/simd_asimd.h"
#include "kernels/simd_neon.h"

namespace pliant {

const SignKernels kSignsAsimd = {Signs<Asimd>::product_int8, Signs<Neon>::product_f32};

}  // namespace pliant
