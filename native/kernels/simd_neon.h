// 128-bit ARM vectors under the names that the shared kernels use.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "kernels/merge.h"

namespace pliant {
namespace {

struct Neon {
  using Float = float32x4_t;
  using Int = int32x4_t;
  static constexpr int kLanes = 4;

  static Float set(float value) { return vdupq_n_f32(value); }
  static Float load(const float* p) { return vld1q_f32(p); }
  static Float load_first(const float* p, int count) {
    float values[kLanes] = {};
    std::memcpy(values, p, size_t(count) * sizeof(float));
    return load(values);
  }
  static void store(float* p, Float value) { vst1q_f32(p, value); }
  static void store_first(float* p, Float value, int count) {
    if (count == kLanes) return store(p, value);
    float values[kLanes];
    store(values, value);
    std::memcpy(p, values, size_t(count) * sizeof(float));
  }
  static Float load_half(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }
  static Float load_half_first(const uint16_t* p, int count) {
    uint16_t halves[kLanes] = {};
    std::memcpy(halves, p, size_t(count) * sizeof(uint16_t));
    return load_half(halves);
  }
  static Float load_int8(const int8_t* p) { return load_int8_first(p, kLanes); }
  static Int load_uint8(const uint8_t* p) {
    uint8_t bytes[8] = {};
    std::memcpy(bytes, p, kLanes);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vld1_u8(bytes)))));
  }
  static Float load_int8_first(const int8_t* p, int count) {
    int8_t bytes[8] = {};
    std::memcpy(bytes, p, size_t(count));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes)))));
  }
  static void store_half_first(uint16_t* p, Float value, int count) {
    uint16_t halves[kLanes];
    vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(value)));
    std::memcpy(p, halves, size_t(count) * sizeof(uint16_t));
  }

  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  // A NaN in `value` stays.
  static Float at_most(Float limit, Float value) { return vminq_f32(limit, value); }
  static Float at_least(Float limit, Float value) { return vmaxq_f32(limit, value); }
  static float sum(Float value) { return vaddvq_f32(value); }
  // The sums of four vectors, in order.
  static void sum4(const Float (&v)[4], float* sums) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
  }

  static Int nearest(Float value) { return vcvtnq_s32_f32(value); }
  static Float to_float(Int value) { return vcvtq_f32_s32(value); }
  static Int bits(Float value) { return vreinterpretq_s32_f32(value); }
  static Float from_bits(Int value) { return vreinterpretq_f32_s32(value); }

  static Int set8(int value) { return vreinterpretq_s32_s8(vdupq_n_s8(int8_t(value))); }
  static Int set32(int value) { return vdupq_n_s32(value); }
  static Int load_bytes(const void* p) {
    return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  static void store_bytes(void* p, Int value) {
    vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(value));
  }
  static Int bit_and(Int a, Int b) { return vandq_s32(a, b); }
  static Int bit_or(Int a, Int b) { return vorrq_s32(a, b); }
  // Bits of `mask` from `a`, the others from `b`.
  static Int select(Int mask, Int a, Int b) { return vbslq_s32(vreinterpretq_u32_s32(mask), a, b); }
  template <int kBits>
  static Int shift_right16(Int value) {
    return vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(value), kBits));
  }
  template <int kBits>
  static Int shift_left16(Int value) {
    return vreinterpretq_s32_u16(vshlq_n_u16(vreinterpretq_u16_s32(value), kBits));
  }
  template <int kBits>
  static Int shift_right32(Int value) {
    if constexpr (kBits == 0)
      return value;
    else
      return vshrq_n_s32(value, kBits);
  }
  template <int kBits>
  static Int shift_left32(Int value) {
    return vshlq_n_s32(value, kBits);
  }
  static Int add32(Int a, Int b) { return vaddq_s32(a, b); }
  static Int ascending() { return Int{0, 1, 2, 3}; }
  // All bits of a lane where a >= b, none where not or where one is NaN.
  static Int at_or_above(Float a, Float b) { return vreinterpretq_s32_u32(vcgeq_f32(a, b)); }
  // The first bits of the lanes of a mask, the first lane the lowest.
  static unsigned lanes(Int mask) {
    return vaddvq_u32(vandq_u32(vreinterpretq_u32_s32(mask), uint32x4_t{1, 2, 4, 8}));
  }
  // The values of these lanes in front, in their order; what follows them is anything.
  static Int packed(Int value, unsigned lanes) {
    const uint8x16_t order = vld1q_u8(kPackedLanes<kLanes, 4>[lanes].data());
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(value), order));
  }
  static Int max_unsigned(Int a, Int b) {
    return vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b)));
  }
  static uint32_t max_unsigned(Int value) { return vmaxvq_u32(vreinterpretq_u32_s32(value)); }
  static int32_t sum(Int value) { return vaddvq_s32(value); }
  static void store_as_int8(int8_t* p, Int value) {
    const int16x4_t words = vmovn_s32(value);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(p, &four, sizeof four);
  }

  // 8 bytes in 16 bits.
  static Int load_int16(const int8_t* p) { return vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p))); }
  static Int broadcast_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return vdupq_n_s32(pair);
  }
  // sum of a[0] * x[0] + a[1] * x[1] over pairs of 16 bits, in each 32-bit lane.
  struct PairSum {
    Int low = vdupq_n_s32(0), high = vdupq_n_s32(0);  // neighbours are added at the end

    PLIANT_INLINE void add(Int a, Int x) {
      const int16x8_t codes = vreinterpretq_s16_s32(a), others = vreinterpretq_s16_s32(x);
      low = vmlal_s16(low, vget_low_s16(codes), vget_low_s16(others));
      high = vmlal_high_s16(high, codes, others);
    }
    Int sum() const { return vpaddq_s32(low, high); }
  };

  // The signed dot product takes unsigned codes of up to seven bits; its sums are 32 bits wide.
  static constexpr int kCodeBits = 7;

  // sums[token] += the dot products of the fields of one chunk.
  template <int kTokens>
  static PLIANT_INLINE void dot_fields(const Int (&fields)[kFields], const int8_t* activations,
                                       size_t stride, Int (&sums)[kTokens]) {
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      const int8_t* from = activations + size_t(token) * stride;
      const int8x16_t low = vld1q_s8(from), high = vld1q_s8(from + 16);
      unroll<4>([&](auto i) PLIANT_BODY {
        sums[token] = vdotq_laneq_s32(sums[token], vreinterpretq_s8_s32(fields[i]), low, i);
      });
      unroll<4>([&](auto i) PLIANT_BODY {
        sums[token] = vdotq_laneq_s32(sums[token], vreinterpretq_s8_s32(fields[4 + i]), high, i);
      });
    });
  }

  // sum of (digit - 1) * activation over the bytes of one group (ternary.h), bytes less 128.
  struct TernaryDot {
    static constexpr bool kCentred = true;
    Int first = vdupq_n_s32(0), second = vdupq_n_s32(0);

    static Int load(const uint8_t* p) { return veorq_s32(load_bytes(p), set8(-128)); }
    static Int triple(Int bytes) {
      const int8x16_t x = vreinterpretq_s8_s32(bytes);
      return vreinterpretq_s32_s8(vaddq_s8(vaddq_s8(x, x), x));
    }
    PLIANT_INLINE void add(Int bytes, Int rest, const int8_t* activations) {
      int32_t value;
      std::memcpy(&value, activations, 4);
      const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(value));
      first = vdotq_s32(first, vreinterpretq_s8_s32(bytes), four);
      second = vdotq_s32(second, vreinterpretq_s8_s32(rest), four);
    }
    Int sum() const { return vshrq_n_s32(vsubq_s32(vmulq_n_s32(first, 3), second), 8); }
  };
};

}  // namespace
}  // namespace pliant
