// Products with planes that have a coefficient each, written once for every vector width.
//
// Planes are multiplied one by one, as codes of one bit, and weighed in fp32 where each group ends;
// unpacked bits serve up to four tokens. Every operation on floats is one of the contract's, so
// equality with the scalar definition needs no argument but that the integer sums are exact.
#pragma once

#include <algorithm>

#include "kernels/merge.h"

namespace pliant {
namespace {

template <typename Simd>
struct Coefficients {
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr int kBlockTokens = 4;

  // The rows of one vector.
  struct Rows {
    const CoefficientMatrix& matrix;
    int first;
    int count;
    size_t lane;    // of its first row in a plane
    size_t factor;  // of its first row among the fp16 numbers

    Rows(const CoefficientMatrix& source, int row)
        : matrix(source),
          first(row),
          count(std::min(source.rows - row, kLanes)),
          lane(size_t(row / kTileRows) * source.tile_stride_bytes() + size_t(row % kTileRows) * 4),
          factor(size_t(row / kTileRows) * source.tile_stride_scales() + size_t(row % kTileRows)) {}

    Float coefficients(int plane, int group) const {
      return Simd::load_half(matrix.coefficients[size_t(plane)] + factor + group * kTileRows);
    }
    Float offsets(int group) const {
      return Simd::load_half(matrix.offsets + factor + group * kTileRows);
    }
  };

  template <int kTokens>
  static void multiply_int8(const Rows& rows, const Int8Activations& x, int token_begin, float* y,
                            size_t y_stride) {
    const size_t stride = size_t(x.stride), num_groups = stride / kGroupColumns;
    const int8_t* activations = x.codes + size_t(token_begin) * stride;
    Float sums[kTokens];
    unroll<kTokens>([&](auto token) PLIANT_BODY { sums[token] = Simd::set(0.0f); });
    for (int group = 0; group < rows.matrix.groups(); ++group) {
      const auto factor = [&](auto token) {
        return size_t(token_begin + token) * num_groups + size_t(group);
      };
      const Float offsets = rows.offsets(group);
      Float terms[kTokens];
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        terms[token] = Simd::mul(offsets, Simd::set(float(x.sums[factor(token)])));
      });
      for (int plane = 0; plane < rows.matrix.num_planes; ++plane) {
        Int dots[kTokens];
        dot_plane<Simd, kTokens>(rows.matrix.planes[size_t(plane)] + rows.lane, group,
                                 rows.matrix.chunks(), activations, stride, dots);
        const Float coefficients = rows.coefficients(plane, group);
        unroll<kTokens>([&](auto token) PLIANT_BODY {
          terms[token] = Simd::fma(Simd::to_float(dots[token]), coefficients, terms[token]);
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

  // The values of one column: bit b of each 32-bit lane, spread over the lane, selects.
  template <int kBit>
  static PLIANT_INLINE Float values(const Int* bits, const Float* coefficients, Float offsets,
                                    int num_planes) {
    Float sum = offsets;
    for (int plane = 0; plane < num_planes; ++plane) {
      const Int mask =
          Simd::template shift_right32<31>(Simd::template shift_left32<31 - kBit>(bits[plane]));
      const Float term = Simd::from_bits(Simd::bit_and(mask, Simd::bits(coefficients[plane])));
      sum = Simd::add(sum, term);
    }
    return sum;
  }

  static void multiply_f32(const Rows& rows, const float* x, float* y) {
    const CoefficientMatrix& matrix = rows.matrix;
    Float sum = Simd::set(0.0f);
    for (int chunk = 0; chunk < matrix.chunks(); ++chunk) {
      Int bits[kMaxPlanes];
      Float coefficients[kMaxPlanes];
      for (int plane = 0; plane < matrix.num_planes; ++plane) {
        bits[plane] = Simd::load_bytes(matrix.planes[size_t(plane)] + rows.lane +
                                       size_t(chunk) * kChunkBytes);
        coefficients[plane] = rows.coefficients(plane, chunk / 2);
      }
      const Float offsets = rows.offsets(chunk / 2);
      const int column = chunk * kChunkColumns;
      unroll<kChunkColumns>([&](auto i) PLIANT_BODY {
        if (column + i >= matrix.columns) return;
        constexpr int kBit = 8 * (i % 4) + i / 4;
        const Float weights = values<kBit>(bits, coefficients, offsets, matrix.num_planes);
        sum = Simd::fma(weights, Simd::set(x[column + i]), sum);
      });
    }
    Simd::store_first(y + rows.first, sum, rows.count);
  }
};

template <typename Simd>
void coefficients_int8(const CoefficientMatrix& matrix, const Int8Activations& x, int tile_begin,
                       int tile_end, float* y, size_t y_stride) {
  using Product = Coefficients<Simd>;
  constexpr int kBlock = Product::kBlockTokens;
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int row = tile_begin * kTileRows; row < row_end; row += Simd::kLanes) {
    const typename Product::Rows rows(matrix, row);
    int token = 0;
    for (; token + kBlock <= x.tokens; token += kBlock) {
      Product::template multiply_int8<kBlock>(rows, x, token, y, y_stride);
    }
    if (token + 2 <= x.tokens) {
      Product::template multiply_int8<2>(rows, x, token, y, y_stride);
      token += 2;
    }
    if (token < x.tokens) Product::template multiply_int8<1>(rows, x, token, y, y_stride);
  }
}

template <typename Simd>
void coefficients_f32(const CoefficientMatrix& matrix, const float* x, int tokens, size_t x_stride,
                      int tile_begin, int tile_end, float* y, size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int row = tile_begin * kTileRows; row < row_end; row += Simd::kLanes) {
    const typename Coefficients<Simd>::Rows rows(matrix, row);
    for (int token = 0; token < tokens; ++token) {
      Coefficients<Simd>::multiply_f32(rows, x + size_t(token) * x_stride,
                                       y + size_t(token) * y_stride);
    }
  }
}

}  // namespace
}  // namespace pliant
