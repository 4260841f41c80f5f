#include "kernels/kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/paths.h"

#if defined(__aarch64__) && defined(__linux__)
#  include <asm/hwcap.h>
#  include <sys/auxv.h>
#endif

namespace pliant {
namespace {

#if defined(__x86_64__)
bool cpu_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool cpu_has_avx512_vnni() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
bool cpu_has_dot_product() {
#  if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#  else
  return true;  // every 64-bit Apple processor since 2018
#  endif
}
#endif

}  // namespace

const Kernels* kernels_for(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return &kScalarKernels;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return cpu_has_avx2() ? &kAvx2Kernels : nullptr;
    case Isa::kAvx512Vnni:
      return cpu_has_avx512_vnni() ? &kAvx512VnniKernels : nullptr;
#elif defined(__aarch64__)
    case Isa::kNeon:
      return cpu_has_dot_product() ? &kNeonKernels : nullptr;
#endif
    default:
      return nullptr;
  }
}

const Kernels& best_kernels() {
  struct Path {
    Isa isa;
    const char* name;
  };
  constexpr Path kFastestFirst[] = {{Isa::kAvx512Vnni, "avx512"},
                                    {Isa::kAvx2, "avx2"},
                                    {Isa::kNeon, "neon"},
                                    {Isa::kScalar, "scalar"}};
  const char* variable = std::getenv("PLIANT_ISA");
  const std::string asked = variable == nullptr ? "" : variable;
  std::string found;
  for (const Path& path : kFastestFirst) {
    const Kernels* kernels = kernels_for(path.isa);
    if (kernels == nullptr) continue;
    if (asked.empty() || asked == path.name) return *kernels;
    found += found.empty() ? path.name : std::string(", ") + path.name;
  }
  throw std::invalid_argument("PLIANT_ISA=" + asked + " is not one of this machine's paths (" +
                              found + "); unset it or name one of them");
}

}  // namespace pliant
