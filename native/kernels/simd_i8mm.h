// NEON with the 8-bit matrix extension: an unsigned by signed dot product for decode; the matrix
// product itself is in blocks_i8mm.cpp.
#pragma once

#include "kernels/simd_neon.h"

namespace pliant {
namespace {

struct NeonI8mm : Neon {
  // Codes are unsigned here, so that all eight bits are one piece.
  static constexpr int kCodeBits = 8;

  // sums[token] += the dot products of the fields of one chunk.
  template <int kTokens>
  static PLIANT_INLINE void dot_fields(const Int (&fields)[kFields], const int8_t* activations,
                                       size_t stride, Int (&sums)[kTokens]) {
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      const int8_t* from = activations + size_t(token) * stride;
      const int8x16_t low = vld1q_s8(from), high = vld1q_s8(from + 16);
      unroll<4>([&](auto i) PLIANT_BODY {
        sums[token] = vusdotq_laneq_s32(sums[token], vreinterpretq_u8_s32(fields[i]), low, i);
      });
      unroll<4>([&](auto i) PLIANT_BODY {
        sums[token] = vusdotq_laneq_s32(sums[token], vreinterpretq_u8_s32(fields[4 + i]), high, i);
      });
    });
  }
};

}  // namespace
}  // namespace pliant
