// AVX2 with the 256-bit form of the byte dot product (AVX-VNNI): Intel since Alder Lake, AMD since
// Zen 5. Nothing but the dot step differs from simd_avx2.h. Compiled without AVX-VNNI the step is
// computed from AVX2, so that all around it can be tested anywhere.
#pragma once

#include "kernels/simd_avx2.h"

namespace pliant {
namespace {

struct AvxVnni : Avx2 {
  // Codes are unsigned and sums 32 bits wide, so that all eight bits are one piece.
  static constexpr int kCodeBits = 8;

  static PLIANT_INLINE void dot_four(Int& sum, Int codes, const int8_t* activations) {
    int32_t value;
    std::memcpy(&value, activations, sizeof value);
    const Int four = set32(value);
#ifdef __AVXVNNI__
    sum = _mm256_dpbusd_avx_epi32(sum, codes, four);
#else
    // For tests on processors without the instruction: seven bits, whose pairs of products 16 bits
    // hold, and the eighth.
    const Int low = _mm256_maddubs_epi16(bit_and(codes, set8(0x7f)), four);
    const Int top = _mm256_maddubs_epi16(bit_and(shift_right16<7>(codes), set8(1)), four);
    sum = add32(sum, add32(_mm256_madd_epi16(low, _mm256_set1_epi16(1)),
                           _mm256_madd_epi16(top, _mm256_set1_epi16(128))));
#endif
  }

  // sums[token] += the dot products of the fields of one chunk, in two chains: a step takes five
  // cycles, and two can start in each.
  template <int kTokens>
  static PLIANT_INLINE void dot_fields(const Int (&fields)[kFields], const int8_t* activations,
                                       size_t stride, Int (&sums)[kTokens]) {
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      const int8_t* from = activations + size_t(token) * stride;
      Int odd = set32(0);
      unroll<kFields>([&](auto field) PLIANT_BODY {
        dot_four(field % 2 == 0 ? sums[token] : odd, fields[field], from + 4 * field);
      });
      sums[token] = add32(sums[token], odd);
    });
  }

  // sum of digit * activation over the bytes of one group (ternary.h).
  struct TernaryDot {
    static constexpr bool kCentred = false;
    Int first = _mm256_setzero_si256(), second = _mm256_setzero_si256();

    static Int load(const uint8_t* p) { return load_bytes(p); }
    static Int triple(Int bytes) { return Avx2::TernaryDot::triple(bytes); }
    PLIANT_INLINE void add(Int bytes, Int rest, const int8_t* activations) {
      dot_four(first, bytes, activations);
      dot_four(second, rest, activations);
    }
    Int sum() const {
      const Int tripled = add32(add32(first, first), first);
      return _mm256_srai_epi32(_mm256_sub_epi32(tripled, second), 8);
    }
  };
};

}  // namespace
}  // namespace pliant
