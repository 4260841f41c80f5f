#include "kernels/kernels.h"

#include <cstdlib>
#include <stdexcept>

#include "kernels/paths.h"

#if defined(__x86_64__)
#  include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#  include <asm/hwcap.h>
#  include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#  include <sys/sysctl.h>
#endif

namespace pliant {
namespace {

#if defined(__x86_64__)
bool cpu_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

// Bit 4 of EAX of leaf 7, subleaf 1; not every compiler's cpu_supports knows the name. Asked once:
// in a virtual machine the instruction ends up in the hypervisor, which takes 25 microseconds.
bool cpu_has_avx_vnni() {
  static const bool found = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return cpu_has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
           (eax & (1u << 4)) != 0;
  }();
  return found;
}

bool cpu_has_avx512_vnni() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__) && defined(__linux__)
constexpr unsigned long kHasI8mm = 1ul << 13;  // HWCAP2_I8MM, which old headers do not know

bool cpu_has_dot_product() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
bool cpu_has_i8mm() { return cpu_has_dot_product() && (getauxval(AT_HWCAP2) & kHasI8mm) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool cpu_has_dot_product() { return true; }  // every 64-bit one since 2018
bool cpu_has_i8mm() {
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &size, nullptr, 0) == 0 && found != 0;
}
#elif defined(__aarch64__)
bool cpu_has_dot_product() { return false; }
bool cpu_has_i8mm() { return false; }
#endif

}  // namespace

const Kernels* kernels_for(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return &kScalarKernels;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return cpu_has_avx2() ? &kAvx2Kernels : nullptr;
    case Isa::kAvx2Lookup:
      return cpu_has_avx2() ? &kAvx2LookupKernels : nullptr;
    case Isa::kAvxVnni:
      return cpu_has_avx_vnni() ? &kAvxVnniKernels : nullptr;
    case Isa::kAvx512Vnni:
      return cpu_has_avx512_vnni() ? &kAvx512VnniKernels : nullptr;
#elif defined(__aarch64__)
    case Isa::kAsimd:
      return &kAsimdKernels;
    case Isa::kAsimdLookup:
      return &kAsimdLookupKernels;
    case Isa::kNeon:
      return cpu_has_dot_product() ? &kNeonKernels : nullptr;
    case Isa::kI8mm:
      return cpu_has_i8mm() ? &kI8mmKernels : nullptr;
#endif
    default:
      return nullptr;
  }
}

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
  for (Isa isa : {Isa::kAvx512Vnni, Isa::kAvxVnni, Isa::kAvx2, Isa::kAvx2Lookup, Isa::kI8mm,
                  Isa::kNeon, Isa::kAsimd, Isa::kAsimdLookup, Isa::kScalar}) {
    const Kernels* kernels = kernels_for(isa);
    if (kernels != nullptr) found.push_back(kernels);
  }
  return found;
}

const Kernels& kernels_named(const std::string& name, const std::string& asked) {
  std::string found;
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->isa) return *kernels;
    found += found.empty() ? kernels->isa : std::string(", ") + kernels->isa;
  }
  throw std::invalid_argument(asked + " is not one of this machine's kernel paths (" + found +
                              "); name one of them or none.");
}

const Kernels& best_kernels() {
  const char* asked = std::getenv("PLIANT_ISA");
  if (asked == nullptr || *asked == '\0') return *available_kernels().front();
  return kernels_named(asked, "PLIANT_ISA=" + std::string(asked));
}

}  // namespace pliant
