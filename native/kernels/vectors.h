// The vector kernels (everything but the integer product) written once for every vector width.
// `Simd` names the vectors of one instruction set: simd_avx512.h, simd_avx2.h, simd_neon.h.
//
// Against the scalar definition sums are taken in another order, and the functions below have their
// own errors; both are far below the rounding of fp16 caches and int8 activations. u = 2^-24.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "kernels/kernels.h"
#include "kernels/merge.h"
#include "kernels/quantize_limits.h"

namespace pliant {
namespace {

// Calls body(begin, count) over [0, size) in whole vectors and one rest.
template <typename Simd, typename Body>
PLIANT_INLINE void for_each_vector(int size, Body&& body) {
  int begin = 0;
  for (; begin + Simd::kLanes <= size; begin += Simd::kLanes) {
    body(begin, std::integral_constant<int, Simd::kLanes>{});
  }
  if (begin < size) body(begin, size - begin);
}

template <typename Simd, typename Count>
PLIANT_INLINE typename Simd::Float load_some(const float* p, Count count) {
  if constexpr (std::is_same_v<Count, int>) return Simd::load_first(p, count);
  return Simd::load(p);
}
template <typename Simd, typename Count>
PLIANT_INLINE void store_some(float* p, typename Simd::Float value, Count count) {
  if constexpr (std::is_same_v<Count, int>) return Simd::store_first(p, value, count);
  Simd::store(p, value);
}

// The largest of the lanes, NaN left out; minus infinity where all are.
template <typename Simd>
PLIANT_INLINE float largest_lane(typename Simd::Float value) {
  float lanes[Simd::kLanes];
  Simd::store(lanes, value);
  float largest = -std::numeric_limits<float>::infinity();
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// exp(x) = 2^n * exp(r), |r| <= ln(2) / 2, exp(r) by its Taylor polynomial of degree 7: truncation
// below 2^-27, all together below 4 u relative. Arguments are held in [-87.3, 88.3]: below, the
// result is 1.2e-38 rather than 0; above, 2.2e38. NaN stays NaN. Of several vectors, in place, step
// by step: one alone waits for each of its instructions.
template <typename Simd, int kVectors>
PLIANT_INLINE void exponentials(typename Simd::Float (&x)[kVectors]) {
  using Float = typename Simd::Float;
  typename Simd::Int n[kVectors];
  Float r[kVectors];
  unroll<kVectors>([&](auto i) PLIANT_BODY {
    x[i] = Simd::at_least(Simd::set(-87.3f), Simd::at_most(Simd::set(88.3f), x[i]));
  });
  unroll<kVectors>(
      [&](auto i) PLIANT_BODY { n[i] = Simd::nearest(Simd::mul(x[i], Simd::set(1.44269504f))); });
  // ln(2) in two parts, the first with so few digits that n times it is exact.
  unroll<kVectors>([&](auto i) PLIANT_BODY {
    const Float minus_n = Simd::sub(Simd::set(0.0f), Simd::to_float(n[i]));
    r[i] = Simd::fma(minus_n, Simd::set(-2.12194440e-4f),
                     Simd::fma(minus_n, Simd::set(0.693359375f), x[i]));
    x[i] = Simd::set(1.0f / 5040);
  });
  constexpr float kCoefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  unroll<int(std::size(kCoefficients))>([&](auto k) PLIANT_BODY {
    unroll<kVectors>(
        [&](auto i) PLIANT_BODY { x[i] = Simd::fma(x[i], r[i], Simd::set(kCoefficients[k])); });
  });
  unroll<kVectors>([&](auto i) PLIANT_BODY {
    const auto exponent = Simd::template shift_left32<23>(Simd::add32(n[i], Simd::set32(127)));
    x[i] = Simd::mul(x[i], Simd::from_bits(exponent));
  });
}
template <typename Simd>
PLIANT_INLINE typename Simd::Float exponential(typename Simd::Float x) {
  typename Simd::Float one[1] = {x};
  exponentials<Simd>(one);
  return one[0];
}

// 1 / (1 + exp(-x)), below 8 u relative where it is above 1e-37.
template <typename Simd>
PLIANT_INLINE typename Simd::Float sigmoid(typename Simd::Float x) {
  const auto one = Simd::set(1.0f);
  return Simd::div(one, Simd::add(one, exponential<Simd>(Simd::sub(Simd::set(0.0f), x))));
}

// 2 * sigmoid(2 x) - 1, below 16 u absolute.
template <typename Simd>
PLIANT_INLINE typename Simd::Float hyperbolic_tangent(typename Simd::Float x) {
  return Simd::fma(Simd::set(2.0f), sigmoid<Simd>(Simd::add(x, x)), Simd::set(-1.0f));
}

// Abramowitz and Stegun 7.1.26: below 1.5e-7 absolute, and rounding.
template <typename Simd>
PLIANT_INLINE typename Simd::Float error_function(typename Simd::Float x) {
  using Float = typename Simd::Float;
  const auto sign_bit = Simd::set32(int32_t(0x80000000u));
  const auto sign = Simd::bit_and(Simd::bits(x), sign_bit);
  const Float magnitude = Simd::from_bits(Simd::bit_and(Simd::bits(x), Simd::set32(0x7fffffff)));
  const Float one = Simd::set(1.0f);
  const Float t = Simd::div(one, Simd::fma(Simd::set(0.3275911f), magnitude, one));
  Float p = Simd::set(1.061405429f);
  for (float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    p = Simd::fma(p, t, Simd::set(coefficient));
  }
  const Float minus_square = Simd::mul(magnitude, Simd::sub(Simd::set(0.0f), magnitude));
  const Float tail = Simd::mul(Simd::mul(p, t), exponential<Simd>(minus_square));
  return Simd::from_bits(Simd::bit_or(Simd::bits(Simd::sub(one, tail)), sign));
}

template <typename Simd>
struct VectorKernels {
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;
  static constexpr int kLanes = Simd::kLanes;

  // The same values as the scalar definition: maximum, two divisions, products, nearest-even.
  // load(i, count) gives the values from number i on, of which the first `count` are there.
  template <typename Load>
  static PLIANT_INLINE void quantize_group(Load&& load, int size, int8_t* codes, float* scale,
                                           int32_t* sum) {
    constexpr int kVectors = kGroupColumns / kLanes;
    Float values[kVectors];
    Int maxima = Simd::set32(0);
    for (int i = 0; i < kVectors; ++i) {
      const int count = std::clamp(size - i * kLanes, 0, kLanes);
      values[i] = count == kLanes ? load(i * kLanes, std::integral_constant<int, kLanes>{})
                  : count > 0     ? load(i * kLanes, count)
                                  : Simd::set(0.0f);
      maxima =
          Simd::max_unsigned(maxima, Simd::bit_and(Simd::bits(values[i]), Simd::set32(0x7fffffff)));
    }
    const QuantizeFactors factors = quantize_factors(Simd::max_unsigned(maxima));
    *scale = factors.scale;
    *sum = 0;
    if (factors.inverse == 0.0f) {
      std::memset(codes, 0, kGroupColumns);
      return;
    }
    Int sums = Simd::set32(0);
    for (int i = 0; i < kVectors; ++i) {
      const Int rounded = Simd::nearest(Simd::mul(values[i], Simd::set(factors.inverse)));
      Simd::store_as_int8(codes + i * kLanes, rounded);
      sums = Simd::add32(sums, rounded);
    }
    *sum = Simd::sum(sums);
  }

  static void quantize(const float* x, int columns, int stride, int8_t* codes, float* scales,
                       int32_t* sums) {
    for (int group = 0; group < stride / kGroupColumns; ++group) {
      const float* begin = x + std::min(group * kGroupColumns, columns);
      quantize_group([&](int i, auto count)
                         PLIANT_BODY { return load_some<Simd>(begin + i, count); },
                     std::min(int(x + columns - begin), kGroupColumns),
                     codes + group * kGroupColumns, scales + group, sums + group);
    }
  }

  // 1 / sqrt(mean(x^2) + epsilon)
  static Float norm_factor(const float* x, float epsilon, int size) {
    Float squares[2] = {Simd::set(0.0f), Simd::set(0.0f)};
    for_each_vector<Simd>(size, [&](int i, auto count) PLIANT_BODY {
      const Float value = load_some<Simd>(x + i, count);
      Float& sum = squares[i / kLanes % 2];
      sum = Simd::fma(value, value, sum);
    });
    const float mean = Simd::sum(Simd::add(squares[0], squares[1])) / float(size);
    return Simd::set(1.0f / std::sqrt(mean + epsilon));
  }

  template <typename Count>
  static PLIANT_INLINE Float normed(const float* x, const float* weight, Float offset, Float factor,
                                    Count count) {
    const Float gain = Simd::add(load_some<Simd>(weight, count), offset);
    return Simd::mul(Simd::mul(load_some<Simd>(x, count), factor), gain);
  }

  static void rms_norm(const float* x, const float* weight, float offset, float epsilon, int size,
                       float* y) {
    const Float factor = norm_factor(x, epsilon, size), added = Simd::set(offset);
    for_each_vector<Simd>(size, [&](int i, auto count) PLIANT_BODY {
      store_some<Simd>(y + i, normed(x + i, weight + i, added, factor, count), count);
    });
  }

  static void norm_quantize(const float* x, const float* weight, float offset, float epsilon,
                            int size, int stride, int8_t* codes, float* scales, int32_t* sums) {
    const Float factor = norm_factor(x, epsilon, size), added = Simd::set(offset);
    for (int group = 0; group < stride / kGroupColumns; ++group) {
      const int begin = std::min(group * kGroupColumns, size);
      quantize_group(
          [&](int i, auto count) PLIANT_BODY {
            return normed(x + begin + i, weight + begin + i, added, factor, count);
          },
          std::min(size - begin, kGroupColumns), codes + group * kGroupColumns, scales + group,
          sums + group);
    }
  }

  static void sum_scales(const PlaneMatrix& matrix, const float* weight, int tile_begin,
                         int tile_end, float* y) {
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales();
      const int rows = std::min(kTileRows, matrix.rows - tile * kTileRows);
      for (int row = 0; row < rows; row += kLanes) {
        Float sum = Simd::set(0.0f);
        for (int group = 0; group < matrix.groups(); ++group) {
          const Float scale = Simd::load_half(scales + group * kTileRows + row);
          sum = Simd::fma(scale, Simd::set(weight[group]), sum);
        }
        Simd::store_first(y + tile * kTileRows + row, sum, std::min(kLanes, rows - row));
      }
    }
  }

  static void rotate(float* head, const float* cosine, const float* sine, int head_dim) {
    float* other = head + head_dim / 2;
    for_each_vector<Simd>(head_dim / 2, [&](int i, auto count) PLIANT_BODY {
      const Float a = load_some<Simd>(head + i, count), b = load_some<Simd>(other + i, count);
      const Float c = load_some<Simd>(cosine + i, count), s = load_some<Simd>(sine + i, count);
      store_some<Simd>(head + i, Simd::sub(Simd::mul(a, c), Simd::mul(b, s)), count);
      store_some<Simd>(other + i, Simd::fma(b, c, Simd::mul(a, s)), count);
    });
  }

  template <Activation kActivation>
  static Float activate(Float x) {
    if constexpr (kActivation == Activation::kSilu) return Simd::mul(x, sigmoid<Simd>(x));
    if constexpr (kActivation == Activation::kGelu) {
      const Float erf = error_function<Simd>(Simd::mul(x, Simd::set(0.70710678f)));
      return Simd::mul(Simd::mul(x, Simd::set(0.5f)), Simd::add(erf, Simd::set(1.0f)));
    }
    // (1 + tanh(v)) / 2 = sigmoid(2 v)
    const Float cubic = Simd::mul(Simd::mul(x, x), Simd::mul(x, Simd::set(0.044715f)));
    const Float v = Simd::mul(Simd::set(2.0f * 0.79788456f), Simd::add(x, cubic));
    return Simd::mul(x, sigmoid<Simd>(v));
  }

  template <Activation kActivation>
  static void gate_with(const float* gate, const float* up, int size, float* y) {
    for_each_vector<Simd>(size, [&](int i, auto count) PLIANT_BODY {
      const Float active = activate<kActivation>(load_some<Simd>(gate + i, count));
      store_some<Simd>(y + i, Simd::mul(active, load_some<Simd>(up + i, count)), count);
    });
  }

  static void gated(Activation activation, const float* gate, const float* up, int size, float* y) {
    switch (activation) {
      case Activation::kSilu:
        return gate_with<Activation::kSilu>(gate, up, size, y);
      case Activation::kGelu:
        return gate_with<Activation::kGelu>(gate, up, size, y);
      case Activation::kGeluTanh:
        return gate_with<Activation::kGeluTanh>(gate, up, size, y);
    }
  }

  static void add(const float* x, int size, float* y) {
    for_each_vector<Simd>(size, [&](int i, auto count) PLIANT_BODY {
      store_some<Simd>(
          y + i, Simd::add(load_some<Simd>(x + i, count), load_some<Simd>(y + i, count)), count);
    });
  }

  // One cache entry as codes with one scale: the arithmetic of quantize_group at any size.
  static void store_int8(const float* x, int size, int8_t* codes, float* scale) {
    Int maxima = Simd::set32(0);
    for_each_vector<Simd>(size, [&](int i, auto count) PLIANT_BODY {
      const Int magnitude =
          Simd::bit_and(Simd::bits(load_some<Simd>(x + i, count)), Simd::set32(0x7fffffff));
      maxima = Simd::max_unsigned(maxima, magnitude);
    });
    const QuantizeFactors factors = quantize_factors(Simd::max_unsigned(maxima));
    *scale = factors.scale;
    if (factors.inverse == 0.0f) {
      std::memset(codes, 0, size_t(size));
      return;
    }
    for_each_vector<Simd>(size, [&](int i, auto count) PLIANT_BODY {
      const Float scaled = Simd::mul(load_some<Simd>(x + i, count), Simd::set(factors.inverse));
      int8_t vector[kLanes];
      Simd::store_as_int8(vector, Simd::nearest(scaled));
      std::memcpy(codes + i, vector, size_t(count));
    });
  }

  static void store(const float* x, int size, CacheType type, void* y, float* scale) {
    if (type == CacheType::kFloat32) {
      std::memcpy(y, x, size_t(size) * sizeof(float));
    } else if (type == CacheType::kFloat16) {
      uint16_t* halves = static_cast<uint16_t*>(y);
      for_each_vector<Simd>(size, [&](int i, auto count) PLIANT_BODY {
        Simd::store_half_first(halves + i, load_some<Simd>(x + i, count), int(count));
      });
    } else {
      store_int8(x, size, static_cast<int8_t*>(y), scale);
    }
  }
};

}  // namespace
}  // namespace pliant
