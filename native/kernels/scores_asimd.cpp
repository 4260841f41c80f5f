#include "kernels/scores_simd.h"
#include "kernels/simd_neon.h"

namespace pliant {

const ScoreKernels kScoresAsimd = score_kernels<Neon>();

}  // namespace pliant
