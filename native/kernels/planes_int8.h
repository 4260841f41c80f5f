// Planes times int8 activations for instruction sets with vectors of 16 or 32 bytes, written once.
//
// `Simd` brings `dot_fields`, the dot product of one chunk with the activations of a few tokens,
// and `kCodeBits`, the widest unsigned code it takes. A code with more planes is cut into two
// pieces, 16 * upper + lower nibble; the product is linear in them. Exactness as in
// planes_avx512.cpp.
#pragma once

#include <algorithm>

#include "kernels/merge.h"

namespace pliant {
namespace {

template <typename Simd, int kPlanes>
struct PlanesInt8 {
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr int kRowVectors = kTileRows / kLanes;
  static constexpr int kVectorBytes = 4 * kLanes;
  static constexpr int kPieces = kPlanes > Simd::kCodeBits ? 2 : 1;
  static constexpr int kBlockTokens = 4;
  static constexpr int kSpanColumns = 2048;  // unpacked at a time: 64 or 128 KiB
  static constexpr int kSpanChunks = kSpanColumns / kChunkColumns;
  static constexpr size_t kChunkCodeBytes = size_t(kPieces) * kFields * kVectorBytes;

  using Codes = Int[kPieces][kFields];

  // The rows of one vector within a tile.
  struct Rows {
    const uint8_t* planes[kPlanes];
    const uint16_t* scales;
    int first;
    int count;

    Rows(const PlaneMatrix& matrix, int tile, int row_vector)
        : scales(matrix.scales + size_t(tile) * matrix.tile_stride_scales() + row_vector * kLanes),
          first(tile * kTileRows + row_vector * kLanes),
          count(std::clamp(matrix.rows - first, 0, kLanes)) {
      for (int plane = 0; plane < kPlanes; ++plane) {
        planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes() +
                        size_t(row_vector) * kVectorBytes;
      }
    }
  };

  static PLIANT_INLINE void unpack(const uint8_t* const* planes, int chunk, Codes& codes) {
    const size_t offset = size_t(chunk) * kChunkBytes;
    if constexpr (kPieces == 1) {
      for_each_field<Simd, kPlanes, 0>(
          planes, offset, [&](auto field, Int bytes) PLIANT_BODY { codes[0][field] = bytes; });
    } else {
      constexpr int kHigh = kPlanes - kNibblePlanes;
      for_each_field<Simd, kHigh, 0>(
          planes, offset, [&](auto field, Int bytes) PLIANT_BODY { codes[0][field] = bytes; });
      for_each_field<Simd, kNibblePlanes, 0>(planes + kHigh, offset,
                                             [&](auto field, Int bytes)
                                                 PLIANT_BODY { codes[1][field] = bytes; });
    }
  }

  // dots[token] = the products of one group; load(chunk, codes) brings the codes of a chunk.
  template <int kTokens, typename Load>
  static PLIANT_INLINE void dot_group(const int8_t* activations, size_t stride, int chunk_begin,
                                      int chunk_end, const Load& load, Int (&dots)[kTokens]) {
    Int pieces[kPieces][kTokens];
    unroll<kPieces * kTokens>(
        [&](auto i) PLIANT_BODY { pieces[i / kTokens][i % kTokens] = Simd::set32(0); });
    for (int chunk = chunk_begin; chunk < chunk_end; ++chunk) {
      Codes codes;
      load(chunk, codes);
      const int8_t* from = activations + size_t(chunk) * kChunkColumns;
      unroll<kPieces>([&](auto piece) PLIANT_BODY {
        Simd::template dot_fields<kTokens>(codes[piece], from, stride, pieces[piece]);
      });
    }
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      dots[token] = pieces[0][token];
      if constexpr (kPieces == 2) {
        dots[token] =
            Simd::add32(Simd::template shift_left32<kNibblePlanes>(dots[token]), pieces[1][token]);
      }
    });
  }

  // sums[token] += the products of the chunks of a span, groups in ascending order.
  template <int kTokens, typename Load>
  static PLIANT_INLINE void add_span(const PlaneMatrix& matrix, const Int8Activations& x,
                                     int token_begin, const Rows& rows, int chunk_begin,
                                     int chunk_end, const Load& load, Float (&sums)[kTokens]) {
    constexpr float kUnit = -0.5f * float(low_bits(kPlanes));
    constexpr float kStep = float(1 << (kMaxPlanes - kPlanes));
    const size_t stride = size_t(x.stride), num_groups = stride / kGroupColumns;
    const int8_t* activations = x.codes + size_t(token_begin) * stride;
    for (int group = chunk_begin / 2; group < ceil_div(chunk_end, 2); ++group) {
      Int dots[kTokens];
      dot_group<kTokens>(activations, stride, 2 * group, std::min(2 * group + 2, matrix.chunks()),
                         load, dots);
      const Float row_scale = Simd::load_half(rows.scales + group * kTileRows);
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        const size_t factor = size_t(token_begin + token) * num_groups + size_t(group);
        const Float zero = Simd::set(kUnit * float(x.sums[factor]));
        const Float scale = Simd::mul(row_scale, Simd::set(kStep * x.scales[factor]));
        sums[token] = Simd::fma(Simd::add(Simd::to_float(dots[token]), zero), scale, sums[token]);
      });
    }
  }

  static void multiply_one_token(const PlaneMatrix& matrix, const Int8Activations& x, int tile,
                                 float* y) {
    for (int row_vector = 0; row_vector < kRowVectors; ++row_vector) {
      const Rows rows(matrix, tile, row_vector);
      if (rows.count == 0) return;
      Float sums[1] = {Simd::set(0.0f)};
      const auto load = [&](int chunk, Codes& codes)
                            PLIANT_BODY { unpack(rows.planes, chunk, codes); };
      add_span<1>(matrix, x, 0, rows, 0, matrix.chunks(), load, sums);
      Simd::store_first(y + rows.first, sums[0], rows.count);
    }
  }

  template <int kTokens>
  static void multiply_tokens(const PlaneMatrix& matrix, const Int8Activations& x, int token,
                              const Rows& rows, int chunk_begin, int chunk_end,
                              const uint8_t* unpacked, float* y, size_t y_stride) {
    float* out = y + size_t(token) * y_stride + size_t(rows.first);
    Float sums[kTokens];
    unroll<kTokens>([&](auto i) PLIANT_BODY {
      sums[i] = chunk_begin == 0 ? Simd::set(0.0f)
                                 : Simd::load_first(out + size_t(i) * y_stride, rows.count);
    });
    const auto load = [&](int chunk, Codes& codes) PLIANT_BODY {
      const uint8_t* from = unpacked + size_t(chunk - chunk_begin) * kChunkCodeBytes;
      unroll<kPieces * kFields>([&](auto i) PLIANT_BODY {
        codes[i / kFields][i % kFields] = Simd::load_bytes(from + i * kVectorBytes);
      });
    };
    add_span<kTokens>(matrix, x, token, rows, chunk_begin, chunk_end, load, sums);
    unroll<kTokens>([&](auto i) PLIANT_BODY {
      Simd::store_first(out + size_t(i) * y_stride, sums[i], rows.count);
    });
  }

  static void multiply_all_tokens(const PlaneMatrix& matrix, const Int8Activations& x,
                                  const Rows& rows, int chunk_begin, int chunk_end,
                                  const uint8_t* unpacked, float* y, size_t y_stride) {
    int token = 0;
    for (; token + kBlockTokens <= x.tokens; token += kBlockTokens) {
      multiply_tokens<kBlockTokens>(matrix, x, token, rows, chunk_begin, chunk_end, unpacked, y,
                                    y_stride);
    }
    if (token + 2 <= x.tokens) {
      multiply_tokens<2>(matrix, x, token, rows, chunk_begin, chunk_end, unpacked, y, y_stride);
      token += 2;
    }
    if (token < x.tokens) {
      multiply_tokens<1>(matrix, x, token, rows, chunk_begin, chunk_end, unpacked, y, y_stride);
    }
  }

  // Codes unpacked once into `scratch` serve all tokens.
  static void multiply_tile(const PlaneMatrix& matrix, const Int8Activations& x, int tile, float* y,
                            size_t y_stride, uint8_t* scratch) {
    for (int row_vector = 0; row_vector < kRowVectors; ++row_vector) {
      const Rows rows(matrix, tile, row_vector);
      if (rows.count == 0) return;
      for (int begin = 0; begin < matrix.chunks(); begin += kSpanChunks) {
        const int end = std::min(begin + kSpanChunks, matrix.chunks());
        uint8_t* next = scratch;
        for (int chunk = begin; chunk < end; ++chunk, next += kChunkCodeBytes) {
          Codes codes;
          unpack(rows.planes, chunk, codes);
          unroll<kPieces * kFields>([&](auto i) PLIANT_BODY {
            Simd::store_bytes(next + i * kVectorBytes, codes[i / kFields][i % kFields]);
          });
        }
        multiply_all_tokens(matrix, x, rows, begin, end, scratch, y, y_stride);
      }
    }
  }
};

template <typename Simd>
void planes_int8(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin, int tile_end,
                 float* y, size_t y_stride, void* scratch) {
  with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
    using Planes = PlanesInt8<Simd, planes>;
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      if (x.tokens == 1) {
        Planes::multiply_one_token(matrix, x, tile, y);
      } else {
        Planes::multiply_tile(matrix, x, tile, y, y_stride, static_cast<uint8_t*>(scratch));
      }
    }
  });
}

template <typename Simd>
size_t planes_int8_scratch(const PlaneMatrix& matrix, int tokens) {
  using Widest = PlanesInt8<Simd, kMaxPlanes>;
  if (tokens == 1) return 0;
  return size_t(std::min(matrix.chunks(), Widest::kSpanChunks)) * Widest::kChunkCodeBytes;
}

}  // namespace
}  // namespace pliant
