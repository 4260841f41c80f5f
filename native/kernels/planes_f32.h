// Planes times fp32 activations, written once for every vector width: the exact reference mode.
#pragma once

#include <algorithm>

#include "kernels/merge.h"

namespace pliant {
namespace {

template <typename Simd, int kPlanes>
struct PlanesFloat {
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr int kRowVectors = kTileRows / kLanes;
  static constexpr int kBlockTokens = 4;  // a decoded weight serves so many tokens

  // dots += the products of one chunk for one vector of rows; x is [kTokens][x_stride].
  template <int kTokens>
  static PLIANT_INLINE void add_chunk(const uint8_t* const* planes, size_t offset, const float* x,
                                      size_t x_stride, Float (&dots)[kTokens]) {
    constexpr float kStep = float(1 << (kMaxPlanes - kPlanes));
    const Float step = Simd::set(kStep), lowest = Simd::set(0.5f * kStep - 128.0f);
    for_each_field<Simd, kPlanes, 0>(planes, offset, [&](auto field, Int bytes) PLIANT_BODY {
      unroll<4>([&](auto byte) PLIANT_BODY {
        const Int code =
            Simd::bit_and(Simd::template shift_right32<8 * byte>(bytes), Simd::set32(0xff));
        const Float weight = Simd::fma(Simd::to_float(code), step, lowest);
        unroll<kTokens>([&](auto token) PLIANT_BODY {
          const float activation = x[size_t(token) * x_stride + size_t(4 * field + byte)];
          dots[token] = Simd::fma(weight, Simd::set(activation), dots[token]);
        });
      });
    });
  }

  // y[token][row] of one vector of rows.
  template <int kTokens>
  static void multiply_rows(const PlaneMatrix& matrix, const float* x, size_t x_stride, int row,
                            float* y, size_t y_stride) {
    const int tile = row / kTileRows, row_in_tile = row % kTileRows;
    const uint8_t* planes[kPlanes];
    for (int plane = 0; plane < kPlanes; ++plane) {
      planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes() +
                      size_t(row_in_tile) * 4;
    }
    const uint16_t* scales =
        matrix.scales + size_t(tile) * matrix.tile_stride_scales() + row_in_tile;
    Float sums[kTokens];
    unroll<kTokens>([&](auto token) PLIANT_BODY { sums[token] = Simd::set(0.0f); });
    for (int group = 0; group < matrix.groups(); ++group) {
      Float dots[kTokens];
      unroll<kTokens>([&](auto token) PLIANT_BODY { dots[token] = Simd::set(0.0f); });
      const int chunk_end = std::min(2 * group + 2, matrix.chunks());
      for (int chunk = 2 * group; chunk < chunk_end; ++chunk) {
        const int column = chunk * kChunkColumns;
        const size_t offset = size_t(chunk) * kChunkBytes;
        const float* from = x + column;
        size_t stride = x_stride;
        // Bits beyond the last column may be set: they meet zeros.
        float padded[kTokens][kChunkColumns];
        if (column + kChunkColumns > matrix.columns) {
          const int size = matrix.columns - column;
          for (int token = 0; token < kTokens; ++token) {
            std::copy_n(from + size_t(token) * x_stride, size, padded[token]);
            std::fill(padded[token] + size, padded[token] + kChunkColumns, 0.0f);
          }
          from = padded[0];
          stride = kChunkColumns;
        }
        add_chunk<kTokens>(planes, offset, from, stride, dots);  // one copy: it is long
      }
      const Float scale = Simd::load_half(scales + group * kTileRows);
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        sums[token] = Simd::fma(scale, dots[token], sums[token]);
      });
    }
    const int num_rows = std::min(matrix.rows - row, kLanes);
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      Simd::store_first(y + size_t(token) * y_stride + size_t(row), sums[token], num_rows);
    });
  }

  static void multiply(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                       int tile_begin, int tile_end, float* y, size_t y_stride) {
    const int row_end = std::min(tile_end * kTileRows, matrix.rows);
    for (int row = tile_begin * kTileRows; row < row_end; row += kLanes) {
      int token = 0;
      for (; token + kBlockTokens <= tokens; token += kBlockTokens) {
        multiply_rows<kBlockTokens>(matrix, x + size_t(token) * x_stride, x_stride, row,
                                    y + size_t(token) * y_stride, y_stride);
      }
      for (; token < tokens; ++token) {
        multiply_rows<1>(matrix, x + size_t(token) * x_stride, x_stride, row,
                         y + size_t(token) * y_stride, y_stride);
      }
    }
  }
};

template <typename Simd>
void planes_f32(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                int tile_begin, int tile_end, float* y, size_t y_stride) {
  with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
    PlanesFloat<Simd, planes>::multiply(matrix, x, tokens, x_stride, tile_begin, tile_end, y,
                                        y_stride);
  });
}

}  // namespace
}  // namespace pliant
