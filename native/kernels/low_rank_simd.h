// Low-rank updates written once for every vector width.
//
// A: a lane is a rank, and two columns are multiplied and added at once in 16 bits widened to 32
// (Simd::PairSum), exact in any order. Activations are widened once a group for all ranks. B: a
// lane is a row, sums are fp32; for many tokens a tile of it is made fp32 once, and its four tokens
// share each load.
#pragma once

#include <algorithm>

#include "kernels/low_rank.h"
#include "kernels/merge.h"

namespace pliant {
namespace {

template <typename Simd>
struct LowRankSimd {
  using Float = typename Simd::Float;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr int kBlockVectors = kBlockRanks / kLanes;
  // Sums that the registers hold: of so many tokens against two blocks of ranks.
  static constexpr int kReduceTokens = kLanes == 8 ? 6 : 2;

  // The codes of one group of some tokens in 16 bits, for a broadcast of each pair.
  template <int kCount>
  static PLIANT_INLINE void widen(const Int8Activations& x, int token, int group,
                                  int16_t (&wide)[kCount][kGroupColumns]) {
    unroll<kCount>([&](auto t) PLIANT_BODY {
      const int8_t* codes = x.codes + size_t(token + t) * size_t(x.stride) + group * kGroupColumns;
      unroll<kGroupColumns / (2 * kLanes)>([&](auto i) PLIANT_BODY {
        Simd::store_bytes(wide[t] + i * 2 * kLanes, Simd::load_int16(codes + i * 2 * kLanes));
      });
    });
  }

  // z of kBlocks blocks of ranks, the first of them `block`, for some tokens.
  template <int kCount, int kBlocks>
  static PLIANT_INLINE void reduce_blocks(const LowRank& factors, const Int8Activations& x,
                                          int block, int token, float* z, size_t z_stride) {
    using PairSum = typename Simd::PairSum;
    constexpr int kVectors = kBlocks * kBlockVectors;
    const size_t groups = size_t(factors.groups()), x_groups = size_t(x.stride / kGroupColumns);
    const size_t block_codes = size_t(factors.stride()) * kBlockRanks;
    const int8_t* a = factors.a + size_t(block) * block_codes;
    const float* a_scales = factors.a_scales + size_t(block) * groups * kBlockRanks;
    alignas(64) float sums[kCount][kVectors * kLanes] = {};
    for (size_t group = 0; group < groups; ++group) {
      alignas(64) int16_t wide[kCount][kGroupColumns];
      widen<kCount>(x, token, int(group), wide);
      PairSum dots[kCount][kVectors];
      for (int column = 0; column < kGroupColumns; column += 2) {
        typename Simd::Int codes[kVectors];
        unroll<kVectors>([&](auto v) PLIANT_BODY {
          codes[v] = Simd::load_int16(a + size_t(v / kBlockVectors) * block_codes +
                                      column * kBlockRanks + v % kBlockVectors * 2 * kLanes);
        });
        unroll<kCount>([&](auto t) PLIANT_BODY {
          const auto pair = Simd::broadcast_pair(wide[t] + column);
          unroll<kVectors>([&](auto v) PLIANT_BODY { dots[t][v].add(codes[v], pair); });
        });
      }
      a += kGroupColumns * kBlockRanks;
      unroll<kCount>([&](auto t) PLIANT_BODY {
        const Float x_scale = Simd::set(x.scales[size_t(token + t) * x_groups + group]);
        unroll<kVectors>([&](auto v) PLIANT_BODY {
          const Float scale =
              Simd::load(a_scales + (size_t(v / kBlockVectors) * groups + group) * kBlockRanks +
                         v % kBlockVectors * kLanes);
          float* sum = sums[t] + v * kLanes;
          Simd::store(sum, Simd::fma(Simd::to_float(dots[t][v].sum()), Simd::mul(scale, x_scale),
                                     Simd::load(sum)));
        });
      });
    }
    for (int t = 0; t < kCount; ++t)
      std::copy_n(sums[t], kVectors * kLanes,
                  z + size_t(token + t) * z_stride + size_t(block) * kBlockRanks);
  }

  template <int kCount>
  static PLIANT_INLINE void reduce_tokens(const LowRank& factors, const Int8Activations& x,
                                          const LowRankPart& part, int token, float* z,
                                          size_t z_stride) {
    int block = part.block_begin;
    for (; block + 2 <= part.block_end; block += 2)
      reduce_blocks<kCount, 2>(factors, x, block, token, z, z_stride);
    if (block < part.block_end) reduce_blocks<kCount, 1>(factors, x, block, token, z, z_stride);
  }

  static void reduce_int8(const LowRank& factors, const Int8Activations& x, const LowRankPart& part,
                          float* z, size_t z_stride) {
    int token = part.token_begin;
    for (; token + kReduceTokens <= part.token_end; token += kReduceTokens)
      reduce_tokens<kReduceTokens>(factors, x, part, token, z, z_stride);
    for (; token + 2 <= part.token_end; token += 2)
      reduce_tokens<2>(factors, x, part, token, z, z_stride);
    if (token < part.token_end) reduce_tokens<1>(factors, x, part, token, z, z_stride);
  }

  // z of one block of ranks for one token.
  static PLIANT_INLINE void reduce_block_f32(const LowRank& factors, const float* x, int block,
                                             float* z) {
    const int8_t* a = factors.a + size_t(block) * size_t(factors.stride()) * kBlockRanks;
    const float* a_scales =
        factors.a_scales + size_t(block) * size_t(factors.groups()) * kBlockRanks;
    Float sums[kBlockVectors];
    unroll<kBlockVectors>([&](auto v) PLIANT_BODY { sums[v] = Simd::set(0.0f); });
    for (int group = 0; group < factors.groups(); ++group) {
      const int begin = group * kGroupColumns;
      const int end = std::min(begin + kGroupColumns, factors.columns);
      Float dots[kBlockVectors];
      unroll<kBlockVectors>([&](auto v) PLIANT_BODY { dots[v] = Simd::set(0.0f); });
      for (int column = begin; column < end; column += 2) {
        const Float even = Simd::set(x[column]);
        const Float odd = Simd::set(column + 1 < end ? x[column + 1] : 0.0f);
        unroll<kBlockVectors>([&](auto v) PLIANT_BODY {
          const auto pair = Simd::load_int16(a + column * kBlockRanks + v * 2 * kLanes);
          const auto low = Simd::template shift_right32<16>(Simd::template shift_left32<16>(pair));
          dots[v] = Simd::fma(Simd::to_float(low), even, dots[v]);
          const auto high = Simd::template shift_right32<16>(pair);
          dots[v] = Simd::fma(Simd::to_float(high), odd, dots[v]);
        });
      }
      unroll<kBlockVectors>([&](auto v) PLIANT_BODY {
        const Float scale = Simd::load(a_scales + group * kBlockRanks + v * kLanes);
        sums[v] = Simd::fma(dots[v], scale, sums[v]);
      });
    }
    unroll<kBlockVectors>([&](auto v) PLIANT_BODY { Simd::store(z + v * kLanes, sums[v]); });
  }

  static void reduce_f32(const LowRank& factors, const float* x, size_t x_stride,
                         const LowRankPart& part, float* z, size_t z_stride) {
    for (int token = part.token_begin; token < part.token_end; ++token)
      for (int block = part.block_begin; block < part.block_end; ++block)
        reduce_block_f32(factors, x + size_t(token) * x_stride, block,
                         z + size_t(token) * z_stride + size_t(block) * kBlockRanks);
  }

  static constexpr int kTileVectors = kTileRows / kLanes;
  // Sums that the registers hold: of a whole tile for so many tokens.
  static constexpr int kAddTokens = kLanes == 8 ? 3 : 2;
  // Ranks of which a tile in fp32 has room on the stack and in the first-level cache.
  static constexpr int kMostWideRanks = 64;

  // One tile for some tokens: load(r, vector) gives a vector of rows of b.
  template <int kCount, typename Load>
  static PLIANT_INLINE void add_tile(const LowRank& factors, const float* z, size_t z_stride,
                                     int tile, Load&& load, float* y, size_t y_stride) {
    Float sums[kCount][kTileVectors];
    unroll<kCount * kTileVectors>(
        [&](auto i) PLIANT_BODY { sums[i / kTileVectors][i % kTileVectors] = Simd::set(0.0f); });
    for (int r = 0; r < factors.rank; ++r) {
      Float factor[kCount];
      unroll<kCount>(
          [&](auto t) PLIANT_BODY { factor[t] = Simd::set(z[size_t(t) * z_stride + size_t(r)]); });
      unroll<kTileVectors>([&](auto v) PLIANT_BODY {
        const Float weight = load(r, v);
        unroll<kCount>([&](auto t)
                           PLIANT_BODY { sums[t][v] = Simd::fma(weight, factor[t], sums[t][v]); });
      });
    }
    unroll<kTileVectors>([&](auto v) PLIANT_BODY {
      const int begin = tile * kTileRows + v * kLanes;
      const int count = std::min(factors.rows - begin, kLanes);
      if (count <= 0) return;
      const Float scale = Simd::load_half(factors.b_scales + begin);
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

  // One tile for all tokens, kCount at a time.
  template <int kCount, typename Load>
  static PLIANT_INLINE void add_tokens(const LowRank& factors, const float* z, int tokens,
                                       size_t z_stride, int tile, Load&& load, float* y,
                                       size_t y_stride) {
    int token = 0;
    for (; token + kCount <= tokens; token += kCount)
      add_tile<kCount>(factors, z + size_t(token) * z_stride, z_stride, tile, load,
                       y + size_t(token) * y_stride, y_stride);
    if constexpr (kCount > 1) {
      for (; token < tokens; ++token)
        add_tile<1>(factors, z + size_t(token) * z_stride, z_stride, tile, load,
                    y + size_t(token) * y_stride, y_stride);
    }
  }

  static void add(const LowRank& factors, const float* z, int tokens, size_t z_stride,
                  int tile_begin, int tile_end, float* y, size_t y_stride) {
    alignas(64) float wide[kMostWideRanks * kTileRows];
    const int num_codes = factors.rank * kTileRows;
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      const int8_t* b = factors.b + size_t(tile) * size_t(num_codes);
      if (tokens < kAddTokens || factors.rank > kMostWideRanks) {
        add_tokens<1>(
            factors, z, tokens, z_stride, tile,
            [&](int r, auto v)
                PLIANT_BODY { return Simd::load_int8(b + r * kTileRows + v * kLanes); },
            y, y_stride);
        continue;
      }
      for (int i = 0; i < num_codes; i += kLanes) Simd::store(wide + i, Simd::load_int8(b + i));
      add_tokens<kAddTokens>(
          factors, z, tokens, z_stride, tile,
          [&](int r, auto v) PLIANT_BODY { return Simd::load(wide + r * kTileRows + v * kLanes); },
          y, y_stride);
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
