// The definition of low-rank updates: plain C++, one value at a time.
#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "kernels/low_rank.h"

namespace pliant {
namespace {

// a[r, column] and its scale lie at these places.
size_t code_place(const LowRank& factors, int r, int column) {
  const size_t pair = size_t(r / kBlockRanks) * size_t(factors.stride() / 2) + size_t(column / 2);
  return (pair * kBlockRanks + size_t(r % kBlockRanks)) * 2 + size_t(column % 2);
}

float a_scale(const LowRank& factors, int r, int group) {
  const size_t place = size_t(r / kBlockRanks) * size_t(factors.groups()) + size_t(group);
  return factors.a_scales[place * kBlockRanks + size_t(r % kBlockRanks)];
}

void reduce_int8(const LowRank& factors, const Int8Activations& x, const LowRankPart& part,
                 float* z, size_t z_stride) {
  const size_t x_groups = size_t(x.stride / kGroupColumns);
  for (int token = part.token_begin; token < part.token_end; ++token) {
    const int8_t* codes = x.codes + size_t(token) * size_t(x.stride);
    for (int r = part.block_begin * kBlockRanks; r < part.block_end * kBlockRanks; ++r) {
      float sum = 0.0f;
      for (int group = 0; group < factors.groups(); ++group) {
        int dot = 0;
        for (int c = group * kGroupColumns; c < (group + 1) * kGroupColumns; ++c)
          dot += int(factors.a[code_place(factors, r, c)]) * int(codes[c]);
        const float x_scale = x.scales[size_t(token) * x_groups + size_t(group)];
        sum = std::fma(float(dot), a_scale(factors, r, group) * x_scale, sum);
      }
      z[size_t(token) * z_stride + size_t(r)] = sum;
    }
  }
}

void reduce_f32(const LowRank& factors, const float* x, size_t x_stride, const LowRankPart& part,
                float* z, size_t z_stride) {
  for (int token = part.token_begin; token < part.token_end; ++token) {
    const float* row = x + size_t(token) * x_stride;
    for (int r = part.block_begin * kBlockRanks; r < part.block_end * kBlockRanks; ++r) {
      float sum = 0.0f;
      for (int group = 0; group < factors.groups(); ++group) {
        const int begin = group * kGroupColumns;
        const int end = std::min(begin + kGroupColumns, factors.columns);
        float dot = 0.0f;
        for (int c = begin; c < end; ++c)
          dot = std::fma(float(factors.a[code_place(factors, r, c)]), row[c], dot);
        sum = std::fma(dot, a_scale(factors, r, group), sum);
      }
      z[size_t(token) * z_stride + size_t(r)] = sum;
    }
  }
}

void add(const LowRank& factors, const float* z, int tokens, size_t z_stride, int tile_begin,
         int tile_end, float* y, size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, factors.rows);
  for (int token = 0; token < tokens; ++token) {
    for (int row = tile_begin * kTileRows; row < row_end; ++row) {
      const int8_t* b =
          factors.b + size_t(row / kTileRows) * size_t(factors.rank) * kTileRows + row % kTileRows;
      float sum = 0.0f;
      for (int r = 0; r < factors.rank; ++r)
        sum =
            std::fma(float(b[size_t(r) * kTileRows]), z[size_t(token) * z_stride + size_t(r)], sum);
      float& out = y[size_t(token) * y_stride + size_t(row)];
      out = std::fma(half_to_float(factors.b_scales[row]), sum, out);
    }
  }
}

}  // namespace

const LowRankKernels kLowRankScalar = {reduce_int8, reduce_f32, add};

}  // namespace pliant
