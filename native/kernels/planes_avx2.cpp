// Planes times int8 activations of a few tokens with AVX2: bound by the reading of memory.
//
// A dword lane is a row, so no sum crosses lanes. All rows of a tile advance together, so that each
// plane is read as one sequential stream. Products of a group are summed in 16 bits, which nothing
// overflows (Nibbles says why); fields are left where they are as long as that holds. Exactness as
// in planes_avx512.cpp.
#include "kernels/planes_avx2.h"

#include <algorithm>
#include <cstring>

#include "kernels/simd_avx2.h"

namespace pliant {
namespace {

using Simd = Avx2;
using Int = Simd::Int;

constexpr int kRowVectors = kTileRows / Simd::kLanes;
constexpr int kVectorBytes = 4 * Simd::kLanes;
constexpr int kGroupBytes = 2 * kChunkBytes;

// Far enough to hide a memory access behind the groups in between (measured:
// benchmarks/layout.py).
constexpr size_t kPrefetchBytes = 2048;

// The activations as the kernel wants them, made once per call; `stride` of codes, `groups` of both
// factors lie between tokens.
struct Tokens {
  const int8_t* codes;
  const float* zeros;   // -(2^planes - 1) / 2 * sum
  const float* scales;  // step * scale
  size_t stride;
  size_t groups;
};

// How the fields of up to four merged planes are summed. maddubs adds two products
// |code * activation| <= (2^planes - 1) * 127, times 2^position where a field is not shifted down:
//
//     planes  sums  fields of a group in one sum   largest sum
//     1       4     4 of 16, at position 0 to 3    4 * 2 * 8 * 127  = 8128
//     2       2     8, at position 0 or 2          8 * 2 * 12 * 127 = 24384
//     3       1     16, shifted down              16 * 2 * 7 * 127  = 28448
//     4       2     8, the fields of a chunk       8 * 2 * 15 * 127 = 30480
//
// all below 2^15. Sums at a position p > 0 are multiples of 2^p: shifting them down is exact.
template <int kPlanes>
struct Nibbles {
  static constexpr int kSlot = slot_bits(kPlanes);
  static constexpr int kSums = kPlanes == 1 ? 4 : kPlanes == 3 ? 1 : 2;

  static constexpr int position(int field) { return kSlot == 4 ? 0 : field % 4 / kSlot * kSlot; }
  static constexpr int sum_of(int chunk, int field) {
    return kSlot == 4 ? chunk % kSums : position(field) / kSlot;
  }
  // Whether no field before it is in the sum of this one.
  static constexpr bool begins_sum(int chunk, int field) {
    if (kSlot == 4) return field == 0 && chunk < kSums;
    return chunk == 0 && field < 4 && field % kSlot == 0;
  }
  static constexpr int carrier(int field) { return field % kSlot; }

  // Carriers with the upper half of each byte shifted down behind those as they are.
  static PLIANT_INLINE void read(const uint8_t* const* planes, size_t offset,
                                 Int (&carriers)[2][kSlot]) {
    merge<Simd, kPlanes>(planes, offset, carriers[0]);
    unroll<kSlot>([&](auto i)
                      PLIANT_BODY { carriers[1][i] = Simd::shift_right16<4>(carriers[0][i]); });
  }

  static PLIANT_INLINE Int field_of(const Int (&carriers)[2][kSlot], auto field) {
    return Simd::bit_and(carriers[field / 4][carrier(field)],
                         Simd::set8(low_bits(kPlanes) << position(field)));
  }
};

// words[token][sum] of kChunks chunks for 8 rows.
template <int kPlanes, int kChunks, int kTokens>
PLIANT_INLINE void sum_nibbles(const uint8_t* const* planes, size_t offset,
                               const int8_t* activations, size_t stride,
                               Int (&words)[kTokens][Nibbles<kPlanes>::kSums]) {
  using Layout = Nibbles<kPlanes>;
  unroll<kChunks>([&](auto chunk) PLIANT_BODY {
    Int carriers[2][Layout::kSlot];
    Layout::read(planes, offset + size_t(chunk) * kChunkBytes, carriers);
    unroll<kFields>([&](auto field) PLIANT_BODY {
      constexpr int kSum = Layout::sum_of(chunk, field);
      const Int codes = Layout::field_of(carriers, field);
      const int8_t* from = activations + chunk * kChunkColumns + field * 4;
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        int32_t four;
        std::memcpy(&four, from + token * stride, sizeof four);
        const Int product = _mm256_maddubs_epi16(codes, Simd::set32(four));
        if constexpr (Layout::begins_sum(chunk, field)) {
          words[token][kSum] = product;
        } else {
          words[token][kSum] = _mm256_add_epi16(words[token][kSum], product);
        }
      });
    });
  });
}

// The sums of a nibble times kWeight, in 32 bits.
template <int kPlanes, int kChunks, int kWeight>
PLIANT_INLINE Int widen(const Int (&words)[Nibbles<kPlanes>::kSums]) {
  const Int weight = _mm256_set1_epi16(kWeight);
  if constexpr (kPlanes == 1) {
    const Int low = _mm256_add_epi16(words[0], _mm256_srai_epi16(words[1], 1));
    const Int high = _mm256_add_epi16(words[2], _mm256_srai_epi16(words[3], 1));
    return _mm256_madd_epi16(_mm256_add_epi16(low, _mm256_srai_epi16(high, 2)), weight);
  } else if constexpr (kPlanes == 2) {
    return _mm256_madd_epi16(_mm256_add_epi16(words[0], _mm256_srai_epi16(words[1], 2)), weight);
  } else if constexpr (kPlanes == 4 && kChunks == 2) {
    return Simd::add32(_mm256_madd_epi16(words[0], weight), _mm256_madd_epi16(words[1], weight));
  } else {
    return _mm256_madd_epi16(words[0], weight);
  }
}

// dots[token] = sum of code * activation over kChunks chunks for 8 rows. The dot product is linear
// in the code: above four planes it is 16 * upper + lower nibble.
template <int kPlanes, int kChunks, int kTokens>
PLIANT_INLINE void dot_codes(const uint8_t* const* planes, size_t offset, const int8_t* activations,
                             size_t stride, Int (&dots)[kTokens]) {
  if constexpr (kPlanes <= kNibblePlanes) {
    Int words[kTokens][Nibbles<kPlanes>::kSums];
    sum_nibbles<kPlanes, kChunks, kTokens>(planes, offset, activations, stride, words);
    unroll<kTokens>([&](auto token)
                        PLIANT_BODY { dots[token] = widen<kPlanes, kChunks, 1>(words[token]); });
  } else {
    constexpr int kHigh = kPlanes - kNibblePlanes;
    Int high[kTokens][Nibbles<kHigh>::kSums], low[kTokens][Nibbles<kNibblePlanes>::kSums];
    sum_nibbles<kHigh, kChunks, kTokens>(planes, offset, activations, stride, high);
    unroll<kTokens>([&](auto token)
                        PLIANT_BODY { dots[token] = widen<kHigh, kChunks, 16>(high[token]); });
    sum_nibbles<kNibblePlanes, kChunks, kTokens>(planes + kHigh, offset, activations, stride, low);
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      dots[token] = Simd::add32(dots[token], widen<kNibblePlanes, kChunks, 1>(low[token]));
    });
  }
}

// sums[token][row] += the products of one group.
template <int kPlanes, int kChunks, int kTokens>
PLIANT_INLINE void add_group(const uint8_t* const* planes, const uint16_t* scales,
                             const Tokens& tokens, int group, float (&sums)[kTokens][kTileRows]) {
  const int8_t* activations = tokens.codes + group * kGroupColumns;
#pragma GCC unroll 1
  for (int row = 0; row < kTileRows; row += Simd::kLanes) {
    const size_t offset = size_t(group) * kGroupBytes + size_t(row) * 4;
    Int dots[kTokens];
    dot_codes<kPlanes, kChunks, kTokens>(planes, offset, activations, tokens.stride, dots);
    const __m256 row_scale = Simd::load_half(scales + group * kTileRows + row);
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      const size_t factor = size_t(token) * tokens.groups + size_t(group);
      const __m256 centred =
          _mm256_add_ps(Simd::to_float(dots[token]), Simd::set(tokens.zeros[factor]));
      const __m256 scale = _mm256_mul_ps(row_scale, Simd::set(tokens.scales[factor]));
      float* sum = sums[token] + row;
      Simd::store(sum, Simd::fma(centred, scale, Simd::load(sum)));
    });
  }
}

template <int kPlanes, int kTokens>
void multiply_tile(const PlaneMatrix& matrix, int tile, const Tokens& tokens, float* y,
                   size_t y_stride) {
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales();
  alignas(64) float sums[kTokens][kTileRows] = {};
  const int num_whole = matrix.chunks() / 2;
  for (int group = 0; group < num_whole; ++group) {
    const size_t ahead = size_t(group) * kGroupBytes + kPrefetchBytes;
    unroll<kPlanes>([&](auto plane) PLIANT_BODY {
      unroll<kGroupBytes / 64>([&](auto line) PLIANT_BODY {
        _mm_prefetch(planes[plane] + ahead + line * 64, _MM_HINT_T0);
      });
    });
    add_group<kPlanes, 2, kTokens>(planes, scales, tokens, group, sums);
  }
  if (num_whole < matrix.groups()) {
    add_group<kPlanes, 1, kTokens>(planes, scales, tokens, num_whole, sums);
  }
  const int num_rows = std::min(matrix.rows - tile * kTileRows, kTileRows);
  for (int token = 0; token < kTokens; ++token) {
    std::memcpy(y + size_t(token) * y_stride + size_t(tile) * kTileRows, sums[token],
                size_t(num_rows) * sizeof(float));
  }
}

template <int kPlanes>
void multiply_tokens(const PlaneMatrix& matrix, int tile, const Tokens& tokens, int num_tokens,
                     float* y, size_t y_stride) {
  if (num_tokens == 1) return multiply_tile<kPlanes, 1>(matrix, tile, tokens, y, y_stride);
  if constexpr (few_tokens_avx2(kPlanes, 2)) {
    if (num_tokens == 2) return multiply_tile<kPlanes, 2>(matrix, tile, tokens, y, y_stride);
  }
}

}  // namespace

void multiply_few_tokens_avx2(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                              int tile_end, float* y, size_t y_stride, float* scratch) {
  const size_t groups = size_t(matrix.groups()), stored = size_t(x.stride / kGroupColumns);
  const float unit = -0.5f * float(low_bits(matrix.num_planes));
  const float step = float(1 << (kMaxPlanes - matrix.num_planes));
  float* zeros = scratch;
  float* scales = scratch + groups * size_t(x.tokens);
  for (size_t token = 0; token < size_t(x.tokens); ++token) {
    for (size_t group = 0; group < groups; ++group) {
      zeros[token * groups + group] = unit * float(x.sums[token * stored + group]);
      scales[token * groups + group] = step * x.scales[token * stored + group];
    }
  }
  const Tokens tokens{x.codes, zeros, scales, size_t(x.stride), groups};
  with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      multiply_tokens<planes>(matrix, tile, tokens, x.tokens, y, y_stride);
    }
  });
}

}  // namespace pliant
