#include "kernels/scores_simd.h"
#include "kernels/simd_avx2.h"

namespace pliant {

const ScoreKernels kScoresAvx2 = score_kernels<Avx2>();

}  // namespace pliant
