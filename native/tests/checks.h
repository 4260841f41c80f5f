// What the kernel self-tests share: random numbers, matrices and tokens, and the count of failures.
#pragma once

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/half.h"
#include "kernels/kernels.h"
#include "kernels/low_rank.h"

namespace pliant {

inline std::mt19937 random_bits(20261122);
inline int num_failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  if (++num_failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

// Copies into memory of exactly this size, so that a sanitizer sees one byte too many.
template <typename T>
std::vector<T> exact(const std::vector<T>& values) {
  std::vector<T> copy(values);
  copy.shrink_to_fit();
  return copy;
}

inline std::vector<float> normals(size_t size, float deviation) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(size);
  for (float& value : values) value = normal(random_bits);
  return values;
}

// A matrix whose every stored bit is random, those beyond its columns and rows too.
struct RandomMatrix {
  std::vector<std::vector<uint8_t>> planes;
  std::vector<uint16_t> scales;
  PlaneMatrix view;

  RandomMatrix(int num_planes, int rows, int columns, int stored_columns) {
    view.num_planes = num_planes;
    view.rows = rows;
    view.columns = columns;
    view.stored_columns = stored_columns;
    const size_t bytes = size_t(view.tiles()) * view.tile_stride_bytes();
    for (int plane = 0; plane < num_planes; ++plane) {
      planes.emplace_back(bytes);
      for (uint8_t& byte : planes.back()) byte = uint8_t(random_bits());
      view.planes[size_t(plane)] = planes.back().data();
    }
    scales.resize(size_t(view.tiles()) * view.tile_stride_scales());
    std::uniform_real_distribution<float> scale(1e-4f, 2e-2f);
    for (uint16_t& half : scales) half = float_to_half(scale(random_bits));
    view.scales = scales.data();
  }
};

// Factors of random bytes; those of A beyond its columns are zero, as the contract asks.
struct RandomLowRank {
  std::vector<int8_t> a, b;
  std::vector<float> a_scales;
  std::vector<uint16_t> b_scales;
  LowRank view;

  RandomLowRank(int rank, int rows, int columns) {
    view.rank = rank, view.rows = rows, view.columns = columns;
    const size_t stride = size_t(view.stride()), tiles = size_t(view.tiles());
    const size_t padded = size_t(view.padded_rank());
    a.resize(padded * stride);
    for (size_t i = 0; i < a.size(); ++i) {
      const size_t pair = i / (2 * kBlockRanks), column = pair % (stride / 2) * 2 + i % 2;
      const size_t r = pair / (stride / 2) * kBlockRanks + i / 2 % kBlockRanks;
      a[i] = r < size_t(rank) && column < size_t(columns) ? int8_t(random_bits()) : int8_t(0);
    }
    b.resize(tiles * size_t(rank) * kTileRows);
    for (int8_t& code : b) code = int8_t(random_bits());
    a = exact(a), b = exact(b);
    a_scales = exact(normals(padded * size_t(view.groups()), 0.01f));
    b_scales.resize(tiles * kTileRows);
    for (uint16_t& scale : b_scales) scale = float_to_half(normals(1, 0.01f)[0]);
    b_scales = exact(b_scales);
    view.a = a.data(), view.a_scales = a_scales.data();
    view.b = b.data(), view.b_scales = b_scales.data();
  }
};

struct QuantizedTokens {
  AlignedBuffer<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  Int8Activations view;

  QuantizedTokens(const Kernels& kernels, const std::vector<float>& x, int tokens, int columns) {
    const int stride = ceil_div(columns, kGroupColumns) * kGroupColumns;
    const size_t groups = size_t(stride / kGroupColumns);
    codes.reserve(size_t(tokens) * size_t(stride));
    scales.resize(size_t(tokens) * groups);
    sums.resize(size_t(tokens) * groups);
    for (int token = 0; token < tokens; ++token) {
      const size_t t = size_t(token);
      kernels.quantize(x.data() + t * size_t(columns), columns, stride,
                       codes.data() + t * size_t(stride), scales.data() + t * groups,
                       sums.data() + t * groups);
    }
    view = {codes.data(), scales.data(), sums.data(), tokens, stride};
  }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return false;
  }
  return true;
}

// The largest |a - b| / scale; infinity where only one is NaN.
inline double distance(const std::vector<float>& a, const std::vector<float>& b, double scale) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    const double d = std::fabs(double(a[i]) - double(b[i])) / scale;
    largest = d <= largest ? largest : d;
  }
  return largest;
}

#if defined(__x86_64__)
extern const Kernels kEmulatedAvxVnniKernels;  // runs wherever AVX2 does
#endif

// Each of these compares one kind of kernel on `path` with the scalar definition.
void check_attention(const Kernels& scalar, const Kernels& path);
void check_coefficients(const Kernels& scalar, const Kernels& path);
void check_signs(const Kernels& scalar, const Kernels& path);
void check_ternary(const Kernels& scalar, const Kernels& path);
void check_low_rank(const Kernels& scalar, const Kernels& path);
void check_scores(const Kernels& scalar, const Kernels& path);
// Those of which every path has the same.
void check_cache_codes();
void check_shift_add();
// Whole forward passes of small random models on every path of this machine.
void check_engine();

}  // namespace pliant
