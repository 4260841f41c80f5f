#include "kernels/signs_simd.h"
#include "kernels/simd_avx2.h"

namespace pliant {

const SignKernels kSignsAvx2 = {Signs<Avx2>::product_int8, Signs<Avx2>::product_f32};

}  // namespace pliant
