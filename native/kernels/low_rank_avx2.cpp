#include "kernels/low_rank_simd.h"
#include "kernels/simd_avx2.h"

namespace pliant {

const LowRankKernels kLowRankAvx2 = low_rank_kernels<Avx2>();

}  // namespace pliant
