// 256-bit vectors under the names that the shared kernels use.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/merge.h"

namespace pliant {
namespace {

// Four bytes in place: the operand of a broadcast.
struct __attribute__((packed, may_alias)) Four {
  int32_t value;
};
PLIANT_INLINE const Four& four_at(const int8_t* p) { return *reinterpret_cast<const Four*>(p); }

struct Avx2 {
  using Float = __m256;
  using Int = __m256i;
  static constexpr int kLanes = 8;
  static constexpr bool kExchanges = true;  // select takes three instructions

  static __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), ascending());
  }

  static Float set(float value) { return _mm256_set1_ps(value); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_first(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
  static void store(float* p, Float value) { _mm256_storeu_ps(p, value); }
  static void store_first(float* p, Float value, int count) {
    _mm256_maskstore_ps(p, first(count), value);
  }
  static Float load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float load_half_first(const uint16_t* p, int count) {
    uint16_t halves[kLanes] = {};
    std::memcpy(halves, p, size_t(count) * sizeof(uint16_t));
    return load_half(halves);
  }
  static Float load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static Int load_uint8(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Float load_int8_first(const int8_t* p, int count) {
    int8_t bytes[kLanes] = {};
    std::memcpy(bytes, p, size_t(count));
    return load_int8(bytes);
  }
  static void store_half_first(uint16_t* p, Float value, int count) {
    uint16_t halves[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(halves),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    std::memcpy(p, halves, size_t(count) * sizeof(uint16_t));
  }

  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  // A NaN in `value` stays.
  static Float at_most(Float limit, Float value) { return _mm256_min_ps(limit, value); }
  static Float at_least(Float limit, Float value) { return _mm256_max_ps(limit, value); }
  static float sum(Float value) {
    const __m128 quarter =
        _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  // The sums of neighbouring pairs of 64 bits: of `a` in the lower half of each lane, of `b` in the
  // upper one. A blend, which any unit does, rather than a second shuffle.
  static Float sum_pairs(Float a, Float b) {
    return _mm256_add_ps(_mm256_blend_ps(a, b, 0xcc), _mm256_shuffle_ps(a, b, 0x4e));
  }
  // The sums of four vectors, in order.
  static void sum4(const Float (&v)[4], float* sums) {
    const Float ab = sum_pairs(v[0], v[1]), cd = sum_pairs(v[2], v[3]);
    const Float abcd =
        _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  }

  static Int nearest(Float value) { return _mm256_cvtps_epi32(value); }
  static Float to_float(Int value) { return _mm256_cvtepi32_ps(value); }
  static Int bits(Float value) { return _mm256_castps_si256(value); }
  static Float from_bits(Int value) { return _mm256_castsi256_ps(value); }

  static Int set8(int value) { return _mm256_set1_epi8(char(value)); }
  static Int set32(int value) { return _mm256_set1_epi32(value); }
  static Int load_bytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static void store_bytes(void* p, Int value) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), value);
  }
  static Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int bit_or(Int a, Int b) { return _mm256_or_si256(a, b); }
  static Int bit_xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
  // Bits of `mask` from `a`, the others from `b`.
  static Int select(Int mask, Int a, Int b) {
    return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
  }
  template <int kBits>
  static Int shift_right16(Int value) {
    return _mm256_srli_epi16(value, kBits);
  }
  template <int kBits>
  static Int shift_left16(Int value) {
    return _mm256_slli_epi16(value, kBits);
  }
  template <int kBits>
  static Int shift_right32(Int value) {
    return _mm256_srai_epi32(value, kBits);
  }
  template <int kBits>
  static Int shift_left32(Int value) {
    return _mm256_slli_epi32(value, kBits);
  }
  static Int add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int ascending() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  // All bits of a lane where a >= b, none where not or where one is NaN.
  static Int at_or_above(Float a, Float b) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
  }
  // The first bits of the lanes of a mask, the first lane the lowest.
  static unsigned lanes(Int mask) { return unsigned(_mm256_movemask_ps(from_bits(mask))); }
  // The values of these lanes in front, in their order; what follows them is anything.
  static Int packed(Int value, unsigned lanes) {
    const auto* order = reinterpret_cast<const __m128i*>(kPackedLanes<kLanes, 1>[lanes].data());
    return _mm256_permutevar8x32_epi32(value, _mm256_cvtepu8_epi32(_mm_loadl_epi64(order)));
  }
  static Int max_unsigned(Int a, Int b) { return _mm256_max_epu32(a, b); }
  static uint32_t max_unsigned(Int value) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    return uint32_t(_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
  }
  static int32_t sum(Int value) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
  static void store_as_int8(int8_t* p, Int value) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }

  // 16 bytes in 16 bits.
  static Int load_int16(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Int broadcast_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return set32(pair);
  }
  // sum of a[0] * x[0] + a[1] * x[1] over pairs of 16 bits, in each 32-bit lane.
  struct PairSum {
    Int total = _mm256_setzero_si256();

    PLIANT_INLINE void add(Int a, Int x) {
      total = _mm256_add_epi32(total, _mm256_madd_epi16(a, x));
    }
    Int sum() const { return total; }
  };

  // Codes of four bits: a pair of products is at most 2 * 15 * 127 = 3810, eight of them 30480, so
  // that the saturating 16-bit sums of one chunk never saturate.
  static constexpr int kCodeBits = 4;

  // sums[token] += the dot products of the fields of one chunk.
  template <int kTokens>
  static PLIANT_INLINE void dot_fields(const Int (&fields)[kFields], const int8_t* activations,
                                       size_t stride, Int (&sums)[kTokens]) {
    Int words[kTokens];
    unroll<kFields>([&](auto field) PLIANT_BODY {
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        int32_t four;
        std::memcpy(&four, activations + size_t(token) * stride + size_t(4 * field), 4);
        const Int product = _mm256_maddubs_epi16(fields[field], set32(four));
        words[token] = field == 0 ? product : _mm256_add_epi16(words[token], product);
      });
    });
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      sums[token] = add32(sums[token], _mm256_madd_epi16(words[token], _mm256_set1_epi16(1)));
    });
  }

  // sum of digit * activation over the bytes of one group (ternary.h). A pair of products is at
  // most 2 * 2 * 127, sixteen of them 8128: 16-bit sums hold a group.
  struct TernaryDot {
    static constexpr bool kCentred = false;
    Int words = _mm256_setzero_si256();

    // Bytes less 128: comparisons are signed.
    static Int load(const uint8_t* p) { return _mm256_xor_si256(load_bytes(p), set8(-128)); }
    static Int triple(Int bytes) { return _mm256_add_epi8(_mm256_add_epi8(bytes, bytes), bytes); }
    // The digit is 1 from 86 = ceil(256 / 3) on and 2 from 171 = ceil(512 / 3) on.
    PLIANT_INLINE void add(Int bytes, Int, const int8_t* activations) {
      int32_t four;
      std::memcpy(&four, activations, 4);
      const Int minus = _mm256_add_epi8(_mm256_cmpgt_epi8(bytes, set8(85 - 128)),
                                        _mm256_cmpgt_epi8(bytes, set8(170 - 128)));
      const Int digits = _mm256_sub_epi8(_mm256_setzero_si256(), minus);
      words = _mm256_add_epi16(words, _mm256_maddubs_epi16(digits, set32(four)));
    }
    Int sum() const { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }
  };
};

}  // namespace
}  // namespace pliant
