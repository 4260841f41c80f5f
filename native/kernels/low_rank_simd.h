// Low-rank updates written once for every vector width.
//
// Products of codes are summed in fp32, where 64 of at most 128 * 128 are exact in any order, so
// that no vector of integers is needed and all paths agree. Rows of A are taken four at a time, so
// that one activation serves four. Of B a whole tile is taken for one token, where its rows are
// sums of their own to overlap, and two vectors of rows for four tokens.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/low_rank.h"
#include "kernels/merge.h"

namespace pliant {
namespace {

template <typename Simd>
struct LowRankSimd {
  using Float = typename Simd::Float;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr int kRows = 4;  // what sum4 adds up at once
  static constexpr int kTokens = 4;

  // z of up to four rows of A for some tokens; rows beyond `rank` repeat the last one.
  // load(token, column) gives a vector of activations, scale(token, group) what multiplies it.
  template <int kCount, typename Load, typename Scale>
  static PLIANT_INLINE void reduce_rows(const LowRank& factors, int rank, int rank_end, int token,
                                        Load&& load, Scale&& scale, float* z, size_t z_stride) {
    const int groups = factors.groups(), rows = std::min(rank_end - rank, kRows);
    const int8_t* a[kRows];
    const float* a_scales[kRows];
    for (int row = 0; row < kRows; ++row) {
      const size_t r = size_t(rank + std::min(row, rows - 1));
      a[row] = factors.a + r * size_t(factors.stride());
      a_scales[row] = factors.a_scales + r * size_t(groups);
    }
    float sums[kCount][kRows] = {};
    for (int group = 0; group < groups; ++group) {
      Float dots[kCount][kRows];
      unroll<kCount>([&](auto t) PLIANT_BODY {
        unroll<kRows>([&](auto row) PLIANT_BODY { dots[t][row] = Simd::set(0.0f); });
      });
      for (int i = 0; i < kGroupColumns; i += kLanes) {
        const int column = group * kGroupColumns + i;
        Float x[kCount];
        unroll<kCount>([&](auto t) PLIANT_BODY { x[t] = load(token + t, column); });
        unroll<kRows>([&](auto row) PLIANT_BODY {
          const Float weight = Simd::load_int8(a[row] + column);
          unroll<kCount>([&](auto t)
                             PLIANT_BODY { dots[t][row] = Simd::fma(weight, x[t], dots[t][row]); });
        });
      }
      unroll<kCount>([&](auto t) PLIANT_BODY {
        float dot[kRows];
        Simd::sum4(dots[t], dot);
        for (int row = 0; row < kRows; ++row)
          sums[t][row] = std::fma(dot[row], scale(token + t, group, a_scales[row]), sums[t][row]);
      });
    }
    for (int t = 0; t < kCount; ++t)
      std::copy_n(sums[t], rows, z + size_t(token + t) * z_stride + size_t(rank));
  }

  template <typename Load, typename Scale>
  static PLIANT_INLINE void reduce(const LowRank& factors, const LowRankPart& part, Load&& load,
                                   Scale&& scale, float* z, size_t z_stride) {
    for (int rank = part.rank_begin; rank < part.rank_end; rank += kRows) {
      int token = part.token_begin;
      for (; token + 2 <= part.token_end; token += 2)
        reduce_rows<2>(factors, rank, part.rank_end, token, load, scale, z, z_stride);
      for (; token < part.token_end; ++token)
        reduce_rows<1>(factors, rank, part.rank_end, token, load, scale, z, z_stride);
    }
  }

  static void reduce_int8(const LowRank& factors, const Int8Activations& x, const LowRankPart& part,
                          float* z, size_t z_stride) {
    const size_t stride = size_t(x.stride), groups = stride / kGroupColumns;
    reduce(
        factors, part,
        [&](int token, int column) PLIANT_BODY {
          return Simd::load_int8(x.codes + size_t(token) * stride + size_t(column));
        },
        [&](int token, int group, const float* a_scales) PLIANT_BODY {
          return a_scales[group] * x.scales[size_t(token) * groups + size_t(group)];
        },
        z, z_stride);
  }

  static void reduce_f32(const LowRank& factors, const float* x, size_t x_stride,
                         const LowRankPart& part, float* z, size_t z_stride) {
    reduce(
        factors, part,
        [&](int token, int column) PLIANT_BODY {
          const float* from = x + size_t(token) * x_stride + size_t(column);
          const int left = factors.columns - column;
          return left >= kLanes ? Simd::load(from)
                 : left > 0     ? Simd::load_first(from, left)
                                : Simd::set(0.0f);
        },
        [](int, int group, const float* a_scales) PLIANT_BODY { return a_scales[group]; }, z,
        z_stride);
  }

  // Some vectors of rows of one tile, from `row` on, for some tokens.
  template <int kCount, int kVectors>
  static PLIANT_INLINE void add_rows(const LowRank& factors, const float* z, size_t z_stride,
                                     int row, float* y, size_t y_stride) {
    const int8_t* b = factors.b + size_t(row / kTileRows) * size_t(factors.rank) * kTileRows +
                      size_t(row % kTileRows);
    Float sums[kCount][kVectors];
    unroll<kCount>([&](auto t) PLIANT_BODY {
      unroll<kVectors>([&](auto v) PLIANT_BODY { sums[t][v] = Simd::set(0.0f); });
    });
    for (int r = 0; r < factors.rank; ++r) {
      Float factor[kCount];
      unroll<kCount>(
          [&](auto t) PLIANT_BODY { factor[t] = Simd::set(z[size_t(t) * z_stride + size_t(r)]); });
      unroll<kVectors>([&](auto v) PLIANT_BODY {
        const Float weight = Simd::load_int8(b + size_t(r) * kTileRows + size_t(v) * kLanes);
        unroll<kCount>([&](auto t)
                           PLIANT_BODY { sums[t][v] = Simd::fma(weight, factor[t], sums[t][v]); });
      });
    }
    unroll<kVectors>([&](auto v) PLIANT_BODY {
      const int begin = row + v * kLanes, count = std::min(factors.rows - begin, kLanes);
      if (count <= 0) return;
      const Float scale = Simd::load(factors.b_scales + begin);
      unroll<kCount>([&](auto t) PLIANT_BODY {
        float* out = y + size_t(t) * y_stride + size_t(begin);
        if (count == kLanes) {
          Simd::store(out, Simd::fma(scale, sums[t][v], Simd::load(out)));
        } else {
          const Float old = Simd::load_first(out, count);
          Simd::store_first(out, Simd::fma(scale, sums[t][v], old), count);
        }
      });
    });
  }

  static void add(const LowRank& factors, const float* z, int tokens, size_t z_stride,
                  int tile_begin, int tile_end, float* y, size_t y_stride) {
    constexpr int kTileVectors = kTileRows / kLanes, kPair = std::min(2, kTileVectors);
    const int row_end = std::min(tile_end * kTileRows, factors.rows);
    for (int tile = tile_begin * kTileRows; tile < row_end; tile += kTileRows) {
      int token = 0;
      for (; token + kTokens <= tokens; token += kTokens)
        for (int row = tile; row < std::min(tile + kTileRows, row_end); row += kPair * kLanes)
          add_rows<kTokens, kPair>(factors, z + size_t(token) * z_stride, z_stride, row,
                                   y + size_t(token) * y_stride, y_stride);
      for (; token < tokens; ++token)
        add_rows<1, kTileVectors>(factors, z + size_t(token) * z_stride, z_stride, tile,
                                  y + size_t(token) * y_stride, y_stride);
    }
  }
};

template <typename Simd>
constexpr LowRankKernels low_rank_kernels() {
  using Path = LowRankSimd<Simd>;
  return {Path::reduce_int8, Path::reduce_f32, Path::add};
}

}  // namespace
}  // namespace pliant
