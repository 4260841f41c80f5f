// NEON of the first 64-bit ARM processors, such as those of the Raspberry Pi 3 and 4: no dot
// product, so bytes are multiplied to 16-bit sums. Nothing else differs from simd_neon.h.
#pragma once

#include "kernels/simd_neon.h"

namespace pliant {
namespace {

struct Asimd : Neon {
  // Codes of four bits: eight products of a lane are at most 8 * 15 * 127 = 15240 and a pair of
  // lanes 30480, so that no 16-bit sum of one chunk overflows.
  static constexpr int kCodeBits = 4;

  // Products of rows 0 and 1 in `low`, of rows 2 and 3 in `high`, four columns of each.
  struct Sums16 {
    int16x8_t low = vdupq_n_s16(0), high = vdupq_n_s16(0);

    PLIANT_INLINE void add(int8x16_t codes, const int8_t* activations) {
      int32_t value;
      std::memcpy(&value, activations, sizeof value);
      const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(value));
      low = vmlal_s8(low, vget_low_s8(codes), vget_low_s8(four));
      high = vmlal_high_s8(high, codes, four);
    }
    Int sum() const { return vpaddlq_s16(vpaddq_s16(low, high)); }
  };

  // sums[token] += the dot products of the fields of one chunk.
  template <int kTokens>
  static PLIANT_INLINE void dot_fields(const Int (&fields)[kFields], const int8_t* activations,
                                       size_t stride, Int (&sums)[kTokens]) {
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      const int8_t* from = activations + size_t(token) * stride;
      Sums16 words;
      unroll<kFields>([&](auto field) PLIANT_BODY {
        words.add(vreinterpretq_s8_s32(fields[field]), from + 4 * field);
      });
      sums[token] = add32(sums[token], words.sum());
    });
  }

  // sum of (digit - 1) * activation over the bytes of one group (ternary.h), bytes less 128.
  // Sixteen products of a lane are at most 2032.
  struct TernaryDot {
    static constexpr bool kCentred = true;
    Sums16 words;

    static Int load(const uint8_t* p) { return Neon::TernaryDot::load(p); }
    static Int triple(Int bytes) { return Neon::TernaryDot::triple(bytes); }
    // The digit is 1 from 86 = ceil(256 / 3) on and 2 from 171 = ceil(512 / 3) on. Comparisons give
    // -1 where they hold, and the complement of -digit is digit - 1.
    PLIANT_INLINE void add(Int bytes, Int, const int8_t* activations) {
      const int8x16_t x = vreinterpretq_s8_s32(bytes);
      const uint8x16_t minus =
          vaddq_u8(vcgtq_s8(x, vdupq_n_s8(85 - 128)), vcgtq_s8(x, vdupq_n_s8(170 - 128)));
      words.add(vreinterpretq_s8_u8(vmvnq_u8(minus)), activations);
    }
    Int sum() const { return words.sum(); }
  };
};

}  // namespace
}  // namespace pliant
