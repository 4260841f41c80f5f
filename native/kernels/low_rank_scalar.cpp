// The definition of low-rank updates: plain C++, one value at a time.
#include <algorithm>
#include <cmath>

#include "kernels/low_rank.h"

namespace pliant {
namespace {

void reduce_int8(const LowRank& factors, const Int8Activations& x, const LowRankPart& part,
                 float* z, size_t z_stride) {
  const size_t groups = size_t(factors.groups());
  for (int token = part.token_begin; token < part.token_end; ++token) {
    for (int r = part.rank_begin; r < part.rank_end; ++r) {
      const int8_t* a = factors.a + size_t(r) * size_t(factors.stride());
      const int8_t* codes = x.codes + size_t(token) * size_t(x.stride);
      float sum = 0.0f;
      for (size_t group = 0; group < groups; ++group) {
        int dot = 0;
        for (size_t c = group * kGroupColumns; c < (group + 1) * kGroupColumns; ++c)
          dot += int(a[c]) * int(codes[c]);
        const float scale = factors.a_scales[size_t(r) * groups + group] *
                            x.scales[size_t(token) * size_t(x.stride / kGroupColumns) + group];
        sum = std::fma(float(dot), scale, sum);
      }
      z[size_t(token) * z_stride + size_t(r)] = sum;
    }
  }
}

void reduce_f32(const LowRank& factors, const float* x, size_t x_stride, const LowRankPart& part,
                float* z, size_t z_stride) {
  const size_t groups = size_t(factors.groups());
  for (int token = part.token_begin; token < part.token_end; ++token) {
    for (int r = part.rank_begin; r < part.rank_end; ++r) {
      const int8_t* a = factors.a + size_t(r) * size_t(factors.stride());
      const float* row = x + size_t(token) * x_stride;
      float sum = 0.0f;
      for (size_t group = 0; group < groups; ++group) {
        const size_t begin = group * kGroupColumns;
        const size_t end = std::min(begin + kGroupColumns, size_t(factors.columns));
        float dot = 0.0f;
        for (size_t c = begin; c < end; ++c) dot = std::fma(float(a[c]), row[c], dot);
        sum = std::fma(dot, factors.a_scales[size_t(r) * groups + group], sum);
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
      out = std::fma(factors.b_scales[row], sum, out);
    }
  }
}

}  // namespace

const LowRankKernels kLowRankScalar = {reduce_int8, reduce_f32, add};

}  // namespace pliant
