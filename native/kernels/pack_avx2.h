// Activations of many tokens packed for blocks_avx2.cpp, and where its sums begin.
//
// maddubs adds two products |code * activation| <= (2^planes - 1) * 127 in 16 bits. A window of
// quads is added in 16 bits, modulo 2^16, from a start that makes its sum that of the centred
// products (code - 2^(planes - 1)) * activation, which fits; then it is widened to 32 bits:
//
//     planes   quads in a window   largest centred sum
//     1 to 4   16                  16 * 2 * 8 * 127 = 32512
//     5        8                   8 * 2 * 16 * 127 = 32512
//     6        4                   4 * 2 * 32 * 127 = 32512
//     7        2                   2 * 2 * 64 * 127 = 32512
//     8        16, twice           of 16 * upper + lower nibble
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/simd_avx2.h"

namespace pliant {
namespace {

using Simd = Avx2;
using Int = Simd::Int;

constexpr int kBlockRows = 2 * Simd::kLanes;
constexpr int kBlocksOfTile = kTileRows / kBlockRows;
constexpr int kQuads = kGroupColumns / 4;
constexpr int kQuadBytes = kBlockRows * 4;
constexpr int kPieceBytes = kQuads * kQuadBytes;  // the codes of a group
constexpr int kSpanColumns = 1024;
constexpr int kSpanGroups = kSpanColumns / kGroupColumns;
constexpr int kSpanCodeBytes = kSpanGroups * kPieceBytes;
constexpr int kMostPieces = 2;
constexpr int kMostWindows = 8;
constexpr int kBlockTokens = 6;
constexpr int kSuperTokens = 192;  // 192 KiB of packed activations

// Up to so many tokens a tile is gone through from end to end, so that memory is read as one stream
// for each plane: their activations and sums are small enough to stay in the first-level cache
// beside the codes of kStreamGroups groups.
constexpr int kStreamTokens = 8;
constexpr int kStreamGroups = 8;
constexpr size_t kPrefetchBytes = 4096;  // ahead of use, over all planes together

constexpr int window_quads(int num_planes) {
  return num_planes <= kNibblePlanes || num_planes == kMaxPlanes ? kQuads : 256 >> num_planes;
}
constexpr int num_pieces(int num_planes) { return num_planes == kMaxPlanes ? 2 : 1; }
constexpr int piece_planes(int num_planes) { return num_planes / num_pieces(num_planes); }

// One block of tokens over one span of groups, packed.
struct Block {
  const int8_t* activations;  // [group][token][64 columns]
  const int32_t* starts;      // [group][token][window]: 16-bit sums of the even and the odd pairs
  const float* zeros;         // [group][token]
  const float* scales;        // [group][token]
};

// Where the parts of the scratch lie; all offsets are multiples of 64 bytes.
struct Scratch {
  uint8_t* codes;  // [half of the tile][group of the span][piece][quad][16 rows][4 columns]
  int8_t* activations;
  int32_t* starts;
  float* zeros;
  float* scales;
  size_t num_bytes;

  Scratch(void* memory, int groups, int tokens) {
    const size_t span = size_t(tokens <= kStreamTokens ? groups : std::min(groups, kSpanGroups));
    const size_t num_tokens = size_t(std::min(tokens, kSuperTokens));
    const size_t num_factors = (span * num_tokens + 15) / 16 * 16;
    num_bytes = 0;
    // `memory` may be null, to learn the size.
    const auto take = [&]<typename T>(T*& part, size_t size) {
      part = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + num_bytes);
      num_bytes += size * sizeof(T);
    };
    take(codes, kBlocksOfTile * kMostPieces * size_t(kSpanCodeBytes));
    take(activations, span * num_tokens * kGroupColumns);
    take(starts, num_factors * kMostWindows);
    take(zeros, num_factors);
    take(scales, num_factors);
  }
};

// Blocks of equal size serve tokens better than full ones and a small rest.
struct Blocks {
  int tokens;
  int count() const { return ceil_div(tokens, kBlockTokens); }
  int begin(int block) const { return int(int64_t(tokens) * block / count()); }
};

// Tokens [token, token + count) over one span of groups.
struct Part {
  int token;
  int count;
  int group_begin;
  int group_end;
  int groups() const { return group_end - group_begin; }
};

// Sums, in 16-bit halves, of adjacent dwords: those of `a`, then those of `b`.
Int add_neighbours(Int a, Int b) {
  const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
  const Int even = _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88));
  const Int odd = _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd));
  return _mm256_permute4x64_epi64(_mm256_add_epi16(even, odd), 0xd8);
}

// starts[window] for the 64 activations of a group: minus `centre` times the sums of each window's
// even and odd pairs, two numbers of 16 bits.
void make_starts(const int8_t* activations, int window, int centre, int32_t* starts) {
  const Int ones = Simd::set8(1);  // a dword: the pairs of one quad
  Int sums = add_neighbours(_mm256_maddubs_epi16(ones, Simd::load_bytes(activations)),
                            _mm256_maddubs_epi16(ones, Simd::load_bytes(activations + 32)));
  for (int quads = 2; quads < window; quads *= 2) sums = add_neighbours(sums, sums);
  int32_t all[Simd::kLanes];
  Simd::store_bytes(all, _mm256_mullo_epi16(sums, _mm256_set1_epi16(int16_t(-centre))));
  std::copy_n(all, kQuads / window, starts);
}

void pack_activations(const PlaneMatrix& matrix, const Int8Activations& x, const Part& part,
                      const Scratch& scratch) {
  const int centre = 1 << (piece_planes(matrix.num_planes) - 1);
  const int window = window_quads(matrix.num_planes), num_windows = kQuads / window;
  // sum((code - middle) * x) = dot + zero, where the dot has (code - centre) for each piece.
  const float unit = num_pieces(matrix.num_planes) == 2 ? 8.5f : 0.5f;
  const float step = float(1 << (kMaxPlanes - matrix.num_planes));
  const size_t num_groups = size_t(x.stride / kGroupColumns);
  const Blocks blocks{part.count};
  for (int block = 0; block < blocks.count(); ++block) {
    const int begin = blocks.begin(block);
    const int size = blocks.begin(block + 1) - begin;
    const size_t base = size_t(begin) * size_t(part.groups());
    for (int token = 0; token < size; ++token) {
      const size_t source = size_t(part.token + begin + token);
      for (int group = 0; group < part.groups(); ++group) {
        const size_t factor = base + size_t(group * size + token);
        const size_t from = source * num_groups + size_t(part.group_begin + group);
        const int8_t* codes = x.codes + from * kGroupColumns;
        scratch.zeros[factor] = unit * float(x.sums[from]);
        scratch.scales[factor] = step * x.scales[from];
        make_starts(codes, window, centre, scratch.starts + factor * size_t(num_windows));
        std::memcpy(scratch.activations + factor * kGroupColumns, codes, kGroupColumns);
      }
    }
  }
}

}  // namespace
}  // namespace pliant
