// How a group of activations becomes int8 codes, from its largest magnitude: one place for all
// paths.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace pliant {
namespace {

// Outside these, powers of two no longer move freely between the factors of the product without
// over- or underflow (planes_avx512.cpp). No working model has activations near either.
constexpr float kSmallestMaximum = 1e-20f;  // smaller groups count as zero
constexpr float kLargestMaximum = 1e30f;    // larger ones, infinity and NaN give NaN

struct QuantizeFactors {
  float scale;
  float inverse;  // 0: all codes are 0
};

// `maximum_bits`: the largest of the magnitudes' bit patterns, which compare like the numbers, with
// infinity and NaN above all others.
[[maybe_unused]] inline QuantizeFactors quantize_factors(uint32_t maximum_bits) {
  const float maximum = std::bit_cast<float>(maximum_bits);
  if (maximum < kSmallestMaximum) return {0.0f, 0.0f};
  if (maximum <= kLargestMaximum) return {maximum / 127.0f, 127.0f / maximum};
  return {std::numeric_limits<float>::quiet_NaN(), 0.0f};  // broken input shall be seen
}

}  // namespace
}  // namespace pliant
