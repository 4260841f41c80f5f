// Planes times int8 activations of a few tokens by tables, for processors without dot products.
//
// Four bits of a plane choose one of 16 sums of four activations (T-MAC, arXiv 2407.00088;
// LUT-GEMM, arXiv 2206.09557), and a byte shuffle looks up as many sums as a vector has bytes. Both
// papers round the sums to bytes; here they stay exact. A sum lies in [-508, 508], so that
// sum + 512 has ten bits, stored as the lower and the upper five of them, a table of bytes for
// each. A chunk takes eight sums of a row, which bytes hold: 8 * 31 = 248. Then
//
//     lower + 32 * upper = the products of the chunk + 8 * 512
//
// in 16 bits, where the two chunks of a group and up to two planes, the upper one twice, stay below
// 2^16: 3 * 2 * 248 * 33 = 49104. Pairs of planes are put together in 32 bits, and the excess
// leaves with the term of the zero point. Exactness as in planes_avx512.cpp.
//
// `Path` brings the steps that instruction sets take in their own way (lookup_*.cpp).
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/lookup_paths.h"
#include "kernels/merge.h"

namespace pliant {
namespace {

constexpr size_t kTableBytes = 32;  // 16 lower parts, 16 upper parts
// [quarter of the chunk's columns c / 16][c % 4], of the sums over c / 4 % 4; by c % 4 first.
constexpr size_t kChunkTableBytes = 8 * kTableBytes;
constexpr size_t kGroupTableBytes = 2 * kChunkTableBytes;
constexpr int kChunkExcess = 8 * 512;

// The tables and factors of one token, made once per call.
struct TokenTables {
  uint8_t* tables;  // [group][chunk][column % 4][half of the chunk]
  float* zeros;     // [groups], of the zero point and the excess
  float* scales;    // [groups], step * scale

  static size_t num_bytes(int groups) {
    return size_t(groups) * kGroupTableBytes + 2 * size_t(ceil_div(groups, 16)) * 64;
  }
  TokenTables(uint8_t* memory, int groups)
      : tables(memory),
        zeros(reinterpret_cast<float*>(memory + size_t(groups) * kGroupTableBytes)),
        scales(zeros + ceil_div(groups, 16) * 16) {}
};

template <typename Path>
void fill_tables(const PlaneMatrix& matrix, const Int8Activations& x, int token,
                 const TokenTables& to) {
  const int planes = matrix.num_planes;
  const size_t first = size_t(token) * size_t(x.stride / kGroupColumns);
  for (int group = 0; group < matrix.groups(); ++group) {
    const int chunks = std::min(matrix.chunks() - 2 * group, 2);
    const size_t from = first + size_t(group);
    const int excess = low_bits(planes) * chunks * kChunkExcess;
    to.zeros[group] = -0.5f * float(low_bits(planes)) * float(x.sums[from]) - float(excess);
    to.scales[group] = float(1 << (kMaxPlanes - planes)) * x.scales[from];
    const int8_t* codes = x.codes + from * kGroupColumns;
    uint8_t* tables = to.tables + size_t(group) * kGroupTableBytes;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      for (int half = 0; half < 2; ++half) {
        Path::make_tables(codes + chunk * kChunkColumns + half * 16,
                          tables + size_t(chunk) * kChunkTableBytes + size_t(half) * kTableBytes);
      }
    }
  }
}

// sums[row] += the products of one group.
template <typename Path, int kPlanes, int kChunks>
PLIANT_INLINE void look_up_group(const uint8_t* const* planes, const uint16_t* scales,
                                 const TokenTables& token, int group, float* sums) {
  using Simd = typename Path::Simd;
  using Int = typename Simd::Int;
  constexpr int kVectors = kTileRows / Simd::kLanes;
  const size_t offset = size_t(group) * 2 * kChunkBytes;
  const uint8_t* tables = token.tables + size_t(group) * kGroupTableBytes;
  Int dots[kVectors];
  unroll<ceil_div(kPlanes, 2)>([&](auto pair) PLIANT_BODY {
    constexpr int kFirst = pair == 0 ? 0 : 2 * pair - kPlanes % 2;
    constexpr int kCount = pair == 0 && kPlanes % 2 == 1 ? 1 : 2;
    Int words[Path::kWords];
    unroll<kCount * kChunks>([&](auto i) PLIANT_BODY {
      constexpr int kPlane = kFirst + i / kChunks, kChunk = i % kChunks;
      Int some[Path::kWords];
      Path::look_up(planes[kPlane] + offset + kChunk * kChunkBytes,
                    tables + kChunk * kChunkTableBytes, some);
      unroll<Path::kWords>([&](auto word) PLIANT_BODY {
        if constexpr (i > 0 && kChunk == 0) words[word] = Path::add16(words[word], words[word]);
        words[word] = i == 0 ? some[word] : Path::add16(words[word], some[word]);
      });
    });
    Int wide[kVectors];
    Path::widen(words, wide);
    unroll<kVectors>([&](auto i) PLIANT_BODY {
      dots[i] = pair == 0 ? wide[i] : Simd::add32(Simd::template shift_left32<2>(dots[i]), wide[i]);
    });
  });
  unroll<kVectors>([&](auto i) PLIANT_BODY {
    constexpr int kRow = i * Simd::kLanes;
    const auto centred = Simd::add(Simd::to_float(dots[i]), Simd::set(token.zeros[group]));
    const auto scale = Simd::mul(Simd::load_half(scales + group * kTileRows + kRow),
                                 Simd::set(token.scales[group]));
    Simd::store(sums + kRow, Simd::fma(centred, scale, Simd::load(sums + kRow)));
  });
}

template <typename Path, int kPlanes>
void look_up_tile(const PlaneMatrix& matrix, int tile, const TokenTables& token, float* y) {
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales();
  alignas(64) float sums[kTileRows] = {};
  const int num_whole = matrix.chunks() / 2;
  for (int group = 0; group < num_whole; ++group) {
    // As far ahead as in planes_avx2.cpp.
    const size_t ahead = size_t(group) * 2 * kChunkBytes + 4096 / kPlanes;
    unroll<kPlanes>([&](auto plane) PLIANT_BODY {
      for (size_t line = 0; line < 2 * kChunkBytes; line += 64)
        __builtin_prefetch(planes[plane] + ahead + line);
    });
    look_up_group<Path, kPlanes, 2>(planes, scales, token, group, sums);
  }
  if (num_whole < matrix.groups()) {
    look_up_group<Path, kPlanes, 1>(planes, scales, token, num_whole, sums);
  }
  const int num_rows = std::min(matrix.rows - tile * kTileRows, kTileRows);
  std::memcpy(y + size_t(tile) * kTileRows, sums, size_t(num_rows) * sizeof(float));
}

// planes_int8 of the contract for up to kMostLookupTokens tokens.
template <typename Path>
void multiply_by_lookup(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                        int tile_end, float* y, size_t y_stride, void* scratch) {
  const size_t size = TokenTables::num_bytes(matrix.groups());
  const auto tables_of = [&](int token) {
    return TokenTables(static_cast<uint8_t*>(scratch) + size_t(token) * size, matrix.groups());
  };
  for (int token = 0; token < x.tokens; ++token) {
    fill_tables<Path>(matrix, x, token, tables_of(token));
  }
  with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      for (int token = 0; token < x.tokens; ++token) {
        look_up_tile<Path, planes>(matrix, tile, tables_of(token), y + size_t(token) * y_stride);
      }
    }
  });
}

inline size_t lookup_scratch(const PlaneMatrix& matrix, int tokens) {
  return size_t(std::min(tokens, kMostLookupTokens)) * TokenTables::num_bytes(matrix.groups());
}

}  // namespace
}  // namespace pliant
