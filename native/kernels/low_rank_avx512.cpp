#include "kernels/low_rank_simd.h"
#include "kernels/simd_avx512.h"

namespace pliant {

const LowRankKernels kLowRankAvx512 = low_rank_kernels<Avx512>();

}  // namespace pliant
