// 512-bit vectors under the names that the shared kernels use.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/merge.h"

namespace pliant {
namespace {

struct Avx512 {
  using Float = __m512;
  using Int = __m512i;
  static constexpr int kLanes = 16;

  static __mmask16 first(int count) { return __mmask16((1u << count) - 1u); }

  static Float set(float value) { return _mm512_set1_ps(value); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_first(const float* p, int count) {
    return _mm512_maskz_loadu_ps(first(count), p);
  }
  static void store(float* p, Float value) { _mm512_storeu_ps(p, value); }
  static void store_first(float* p, Float value, int count) {
    _mm512_mask_storeu_ps(p, first(count), value);
  }
  static Float load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float load_half_first(const uint16_t* p, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p));
  }
  static Float load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  static Int load_uint8(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float load_int8_first(const int8_t* p, int count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(count), p)));
  }
  static void store_half_first(uint16_t* p, Float value, int count) {
    const __m256i halves = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(p, first(count), halves);
  }

  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  // A NaN in `value` stays.
  static Float at_most(Float limit, Float value) { return _mm512_min_ps(limit, value); }
  static Float at_least(Float limit, Float value) { return _mm512_max_ps(limit, value); }
  static float sum(Float value) { return _mm512_reduce_add_ps(value); }
  // The sums of four vectors, in order.
  static void sum4(const Float (&v)[4], float* sums) {
    const Float ab = add(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const Float cd = add(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const Float abcd = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }

  static Int nearest(Float value) { return _mm512_cvtps_epi32(value); }
  static Float to_float(Int value) { return _mm512_cvtepi32_ps(value); }
  static Int bits(Float value) { return _mm512_castps_si512(value); }
  static Float from_bits(Int value) { return _mm512_castsi512_ps(value); }

  static Int set8(int value) { return _mm512_set1_epi8(char(value)); }
  static Int set32(int value) { return _mm512_set1_epi32(value); }
  static Int load_bytes(const void* p) { return _mm512_loadu_si512(p); }
  static Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
  // Bits of `mask` from `a`, the others from `b`.
  static Int select(Int mask, Int a, Int b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }
  template <int kBits>
  static Int shift_right16(Int value) {
    return _mm512_srli_epi16(value, kBits);
  }
  template <int kBits>
  static Int shift_left16(Int value) {
    // Addition runs on two ports, the shift on one.
    if constexpr (kBits == 1) return _mm512_add_epi8(value, value);
    return _mm512_slli_epi16(value, kBits);
  }
  template <int kBits>
  static Int shift_right32(Int value) {
    return _mm512_srai_epi32(value, kBits);
  }
  template <int kBits>
  static Int shift_left32(Int value) {
    return _mm512_slli_epi32(value, kBits);
  }
  static Int add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int max_unsigned(Int a, Int b) { return _mm512_max_epu32(a, b); }
  static uint32_t max_unsigned(Int value) { return _mm512_reduce_max_epu32(value); }
  static int32_t sum(Int value) { return _mm512_reduce_add_epi32(value); }
  static void store_as_int8(int8_t* p, Int value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(value));
  }

  // sums[token] += the dot products of the fields of one chunk, in two chains.
  template <int kTokens>
  static PLIANT_INLINE void dot_fields(const Int (&fields)[kFields], const int8_t* activations,
                                       size_t stride, Int (&sums)[kTokens]);

  // sum of digit * activation over the bytes of one group (ternary.h).
  struct TernaryDot {
    static constexpr bool kCentred = false;
    Int first = _mm512_setzero_si512(), second = _mm512_setzero_si512();

    static Int load(const uint8_t* p) { return load_bytes(p); }
    static Int triple(Int bytes) { return _mm512_add_epi8(_mm512_add_epi8(bytes, bytes), bytes); }
    PLIANT_INLINE void add(Int bytes, Int rest, const int8_t* activations);
    Int sum() const {
      const Int tripled = _mm512_add_epi32(_mm512_add_epi32(first, first), first);
      return _mm512_srai_epi32(_mm512_sub_epi32(tripled, second), 8);
    }
  };
};

// sum += codes * four activations, the same four for all rows. gcc 12 copies the accumulators of
// the intrinsic and splits off the broadcast.
PLIANT_INLINE void dot_step(__m512i& sum, __m512i codes, const int8_t* activations) {
  struct Four {
    int8_t value[4];
  };
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum)
      : "v"(codes), "m"(*reinterpret_cast<const Four*>(activations)));
}
PLIANT_INLINE void dot_step(__m512i& sum, __m512i codes, __m512i activations) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(activations));
}

PLIANT_INLINE void Avx512::TernaryDot::add(Int bytes, Int rest, const int8_t* activations) {
  dot_step(first, bytes, activations);
  dot_step(second, rest, activations);
}

template <int kTokens>
PLIANT_INLINE void Avx512::dot_fields(const Int (&fields)[kFields], const int8_t* activations,
                                      size_t stride, Int (&sums)[kTokens]) {
  unroll<kTokens>([&](auto token) PLIANT_BODY {
    const int8_t* four = activations + size_t(token) * stride;
    Int odd = set32(0);
    unroll<kFields>([&](auto field) PLIANT_BODY {
      dot_step(field % 2 == 0 ? sums[token] : odd, fields[field], four + 4 * field);
    });
    sums[token] = add32(sums[token], odd);
  });
}

}  // namespace
}  // namespace pliant
