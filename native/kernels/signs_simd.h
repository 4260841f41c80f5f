// Products with planes of signs, written once for every vector width.
//
// Planes are multiplied one by one, as codes of one bit, and weighed in fp32 where each group ends;
// unpacked bits serve up to four tokens. Every operation on floats is one of the contract's, so
// equality with the scalar definition needs no argument but that the integer sums are exact.
#pragma once

#include <algorithm>

#include "kernels/merge.h"
#include "kernels/signs.h"

namespace pliant {
namespace {

template <typename Simd>
struct Signs {
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr int kBlockTokens = 4;

  // The rows of one vector.
  struct Rows {
    const PlaneMatrix& matrix;
    int first;
    int count;
    size_t lane;   // of its first row in a plane
    size_t block;  // of its first block of rows among the scales

    Rows(const PlaneMatrix& source, int row)
        : matrix(source),
          first(row),
          count(std::min(source.rows - row, kLanes)),
          lane(size_t(row / kTileRows) * source.tile_stride_bytes() + size_t(row % kTileRows) * 4),
          block(size_t(row / kTileRows) * source.tile_stride_scales() +
                size_t(row % kTileRows / kSignSharedRows)) {}

    Float scales(int plane, int group) const {
      const uint16_t* shared =
          matrix.scales + block + size_t(group * kTileRows + plane * kSignBlocks);
      uint16_t halves[kLanes];
      unroll<kLanes>([&](auto i) PLIANT_BODY { halves[i] = shared[i / kSignSharedRows]; });
      return Simd::load_half(halves);
    }
  };

  template <int kTokens>
  static void multiply_int8(const Rows& rows, const Int8Activations& x, int token_begin, float* y,
                            size_t y_stride) {
    const size_t stride = size_t(x.stride), num_groups = stride / kGroupColumns;
    const int8_t* codes = x.codes + size_t(token_begin) * stride;
    Float sums[kTokens];
    unroll<kTokens>([&](auto token) PLIANT_BODY { sums[token] = Simd::set(0.0f); });
    for (int group = 0; group < rows.matrix.groups(); ++group) {
      const auto factor = [&](auto token) {
        return size_t(token_begin + token) * num_groups + size_t(group);
      };
      Float terms[kTokens];
      unroll<kTokens>([&](auto token) PLIANT_BODY { terms[token] = Simd::set(0.0f); });
      for (int plane = 0; plane < rows.matrix.num_planes; ++plane) {
        Int dots[kTokens];
        dot_plane<Simd, kTokens>(rows.matrix.planes[size_t(plane)] + rows.lane, group,
                                 rows.matrix.chunks(), codes, stride, dots);
        const Float scales = rows.scales(plane, group);
        unroll<kTokens>([&](auto token) PLIANT_BODY {
          const Int minus = Simd::set32(-x.sums[factor(token)]);
          const Int signed_sum = Simd::add32(Simd::add32(dots[token], dots[token]), minus);
          terms[token] = Simd::fma(Simd::to_float(signed_sum), scales, terms[token]);
        });
      }
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        sums[token] = Simd::fma(terms[token], Simd::set(x.scales[factor(token)]), sums[token]);
      });
    }
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      float* out = y + size_t(token_begin + token) * y_stride + size_t(rows.first);
      Simd::store_first(out, sums[token], rows.count);
    });
  }

  // The values of one column: bit kBit of each 32-bit lane, spread over it, chooses the sign.
  template <int kBit>
  static PLIANT_INLINE Float values(const Int* bits, const Float* scales, int num_planes) {
    Float sum = Simd::set(0.0f);
    for (int plane = 0; plane < num_planes; ++plane) {
      const Int mask =
          Simd::template shift_right32<31>(Simd::template shift_left32<31 - kBit>(bits[plane]));
      const Float negative = Simd::sub(Simd::set(0.0f), scales[plane]);
      const Int term = Simd::select(mask, Simd::bits(scales[plane]), Simd::bits(negative));
      sum = Simd::add(sum, Simd::from_bits(term));
    }
    return sum;
  }

  static void multiply_f32(const Rows& rows, const float* x, float* y) {
    const PlaneMatrix& matrix = rows.matrix;
    Float sum = Simd::set(0.0f);
    for (int chunk = 0; chunk < matrix.chunks(); ++chunk) {
      Int bits[kSignPlanes];
      Float scales[kSignPlanes];
      for (int plane = 0; plane < matrix.num_planes; ++plane) {
        bits[plane] = Simd::load_bytes(matrix.planes[size_t(plane)] + rows.lane +
                                       size_t(chunk) * kChunkBytes);
        scales[plane] = rows.scales(plane, chunk / 2);
      }
      const int column = chunk * kChunkColumns;
      unroll<kChunkColumns>([&](auto i) PLIANT_BODY {
        if (column + i >= matrix.columns) return;
        constexpr int kBit = 8 * (i % 4) + i / 4;
        const Float weights = values<kBit>(bits, scales, matrix.num_planes);
        sum = Simd::fma(weights, Simd::set(x[column + i]), sum);
      });
    }
    Simd::store_first(y + rows.first, sum, rows.count);
  }

  static void product_int8(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                           int tile_end, float* y, size_t y_stride) {
    const int row_end = std::min(tile_end * kTileRows, matrix.rows);
    for (int row = tile_begin * kTileRows; row < row_end; row += kLanes) {
      const Rows rows(matrix, row);
      int token = 0;
      for (; token + kBlockTokens <= x.tokens; token += kBlockTokens)
        multiply_int8<kBlockTokens>(rows, x, token, y, y_stride);
      if (token + 2 <= x.tokens) {
        multiply_int8<2>(rows, x, token, y, y_stride);
        token += 2;
      }
      if (token < x.tokens) multiply_int8<1>(rows, x, token, y, y_stride);
    }
  }

  static void product_f32(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                          int tile_begin, int tile_end, float* y, size_t y_stride) {
    const int row_end = std::min(tile_end * kTileRows, matrix.rows);
    for (int row = tile_begin * kTileRows; row < row_end; row += kLanes) {
      const Rows rows(matrix, row);
      for (int token = 0; token < tokens; ++token)
        multiply_f32(rows, x + size_t(token) * x_stride, y + size_t(token) * y_stride);
    }
  }
};

}  // namespace
}  // namespace pliant
