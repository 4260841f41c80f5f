// The table of the NEON path.
#include "kernels/neon_kernels.h"

namespace pliant {

const Kernels kNeonKernels = neon_kernels<Neon>("neon");

}  // namespace pliant
