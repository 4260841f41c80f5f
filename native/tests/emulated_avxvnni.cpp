// The AVX-VNNI path with its dot step computed from AVX2, for processors without the instruction.
#if defined(__x86_64__)
#  include "kernels/avxvnni_kernels.h"

namespace pliant {

extern const Kernels kEmulatedAvxVnniKernels;

const Kernels kEmulatedAvxVnniKernels = avxvnni_kernels("avxvnni (emulated)");

}  // namespace pliant

#endif
