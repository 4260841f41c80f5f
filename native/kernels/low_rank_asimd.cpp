#include "kernels/low_rank_simd.h"
#include "kernels/simd_neon.h"

namespace pliant {

const LowRankKernels kLowRankAsimd = low_rank_kernels<Neon>();

}  // namespace pliant
