// The AVX-VNNI path.
#include "kernels/avxvnni_kernels.h"

namespace pliant {

const Kernels kAvxVnniKernels = avxvnni_kernels("avxvnni");

}  // namespace pliant
