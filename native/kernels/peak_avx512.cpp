// Nothing but dot products, to know what the others are measured against.
#include <immintrin.h>

#include "kernels/merge.h"
#include "kernels/paths.h"

namespace pliant {

void repeat_dots_avx512(int64_t repeats) {
  __m512i sums[kDotsPerRepeat];
  unroll<kDotsPerRepeat>([&](auto i) PLIANT_BODY { sums[i] = _mm512_setzero_si512(); });
  const __m512i codes = _mm512_set1_epi8(3), activations = _mm512_set1_epi8(5);
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    unroll<kDotsPerRepeat>([&](auto i) PLIANT_BODY {
      asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(codes), "v"(activations));
    });
  }
}

}  // namespace pliant
