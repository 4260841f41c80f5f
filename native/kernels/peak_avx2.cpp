// Nothing but dot products, to know what the others are measured against.
#include <immintrin.h>

#include "kernels/merge.h"
#include "kernels/paths.h"

namespace pliant {

// Products of bytes added in pairs, the densest multiplication of 8-bit numbers there is; the sums
// over them are other instructions and not counted.
void repeat_dots_avx2(int64_t repeats) {
  __m256i sums[kDotsPerRepeat];
  const __m256i codes = _mm256_set1_epi8(3), activations = _mm256_set1_epi8(5);
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    unroll<kDotsPerRepeat>([&](auto i) PLIANT_BODY {
      asm volatile("vpmaddubsw %2, %1, %0" : "=x"(sums[i]) : "x"(codes), "x"(activations));
    });
  }
}

}  // namespace pliant
