// Products with ternary weights of five digits a byte, written once for every vector width.
//
// With x[i] the byte from which i digits are gone, x[i + 1] = 3 * x[i] mod 256, digit i is
// (3 * x[i] - x[i + 1]) / 256. The product is linear in it, so that no digit is ever extracted:
//
//     sum a[i] * digit[i] = (3 * S1 - S2) / 256,  S1 = sum a[i] * x[i],  S2 = sum a[i] * x[i + 1]
//
// Where bytes are signed they are stored numbers less 128; that is kept by tripling, since
// 3 * 128 = 128 mod 256, and turns the same formula into the sum of a[i] * (digit[i] - 1).
// `Simd::TernaryDot` is the sum over one group; where the processor has 16-bit sums only, in which
// S1 would overflow, it compares the bytes with the thirds of their range instead.
//
// A tile of bytes stays in the first-level cache, so tokens are multiplied one by one.
#pragma once

#include <algorithm>

#include "kernels/merge.h"

namespace pliant {
namespace {

template <typename Simd>
struct Ternary {
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;
  using Dot = typename Simd::TernaryDot;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr int kWholeQuads = kGroupColumns / 4;
  static constexpr size_t kQuadBytes = 4 * kTileRows;

  // The rows of one vector and the activations of one token.
  struct Rows {
    const TernaryMatrix& matrix;
    const uint8_t* bytes;
    const uint16_t* scales;
    const int8_t* activations;
    const float* token_scales;
    const int32_t* token_sums;

    Rows(const TernaryMatrix& source, int row, const Int8Activations& x, int token)
        : matrix(source),
          bytes(source.bytes + size_t(row / kTileRows) * source.tile_stride_ternary() +
                size_t(row % kTileRows) * 4),
          scales(source.scales + size_t(row / kTileRows) * source.tile_stride_scales() +
                 size_t(row % kTileRows)),
          activations(x.codes + size_t(token) * size_t(x.stride)),
          token_scales(x.scales + size_t(token) * size_t(x.stride / kGroupColumns)),
          token_sums(x.sums + size_t(token) * size_t(x.stride / kGroupColumns)) {}

    PLIANT_INLINE void add_group(int group, const Dot& dot, Float& y) const {
      Int sum = dot.sum();
      if constexpr (!Dot::kCentred) sum = Simd::add32(sum, Simd::set32(-token_sums[group]));
      const Float scale =
          Simd::mul(Simd::load_half(scales + group * kTileRows), Simd::set(token_scales[group]));
      y = Simd::fma(Simd::to_float(sum), scale, y);
    }
  };

  // A span whose five groups are all read: each digit is a group.
  static PLIANT_INLINE void add_whole_span(const Rows& rows, int span, Float& y) {
    const uint8_t* bytes = rows.bytes + size_t(span) * TernaryMatrix::span_stride_bytes();
    const int8_t* activations = rows.activations + size_t(span) * kTernarySpan;
    Dot dots[kTernaryDigits];
    for (int quad = 0; quad < kWholeQuads; ++quad) {
      Int digits = Dot::load(bytes + size_t(quad) * kQuadBytes);
      unroll<kTernaryDigits>([&](auto digit) PLIANT_BODY {
        const Int rest = Dot::triple(digits);
        dots[digit].add(digits, rest, activations + digit * kGroupColumns + quad * 4);
        digits = rest;
      });
    }
    unroll<kTernaryDigits>([&](auto digit) PLIANT_BODY {
      rows.add_group(span * kTernaryDigits + digit, dots[digit], y);
    });
  }

  // The last span, short or cut: groups begin and end anywhere in the run of digits.
  static void add_last_span(const Rows& rows, int span, Float& y) {
    const uint8_t* bytes = rows.bytes + size_t(span) * TernaryMatrix::span_stride_bytes();
    const int quads = rows.matrix.quads(span), first = span * kTernaryDigits;
    const int end = std::min(kTernaryDigits * quads, (rows.matrix.groups() - first) * kWholeQuads);
    Dot dot;
    for (int place = 0; place < end; ++place) {
      Int digits = Dot::load(bytes + size_t(place % quads) * kQuadBytes);
      for (int digit = 0; digit < place / quads; ++digit) digits = Dot::triple(digits);
      dot.add(digits, Dot::triple(digits),
              rows.activations + size_t(span) * kTernarySpan + place * 4);
      if ((place + 1) % kWholeQuads == 0 || place + 1 == end) {
        rows.add_group(first + place / kWholeQuads, dot, y);
        dot = Dot();
      }
    }
  }

  static void multiply(const Rows& rows, float* y, int num_rows) {
    Float sum = Simd::set(0.0f);
    const int num_whole = rows.matrix.groups() / kTernaryDigits;
    for (int span = 0; span < num_whole; ++span) {
      if (rows.matrix.quads(span) == kWholeQuads) {
        add_whole_span(rows, span, sum);
      } else {
        add_last_span(rows, span, sum);
      }
    }
    if (num_whole < rows.matrix.spans()) add_last_span(rows, num_whole, sum);
    Simd::store_first(y, sum, num_rows);
  }
};

template <typename Simd>
void ternary_int8(const TernaryMatrix& matrix, const Int8Activations& x, int tile_begin,
                  int tile_end, float* y, size_t y_stride) {
  for (int tile = tile_begin; tile < tile_end; ++tile) {
    const int row_end = std::min((tile + 1) * kTileRows, matrix.rows);
    for (int token = 0; token < x.tokens; ++token) {
      for (int row = tile * kTileRows; row < row_end; row += Simd::kLanes) {
        const typename Ternary<Simd>::Rows rows(matrix, row, x, token);
        Ternary<Simd>::multiply(rows, y + size_t(token) * y_stride + size_t(row),
                                std::min(row_end - row, Simd::kLanes));
      }
    }
  }
}

}  // namespace
}  // namespace pliant
