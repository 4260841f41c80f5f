// Planes times int8 activations of a few tokens with AVX2: bound by the reading of memory.
//
// A dword lane is a row, so no sum crosses lanes. All rows of a tile advance together, so that each
// plane is read as one sequential stream, and two vectors of rows share each broadcast activation.
// Products of a group are summed in 16 bits, which nothing overflows (Nibbles says why); fields are
// left where they are as long as that holds. Several tokens take turns at a tile. Exactness as in
// planes_avx512.cpp.
#include "kernels/planes_avx2.h"

#include <algorithm>
#include <cstring>

#include "kernels/simd_avx2.h"

namespace pliant {
namespace {

using Simd = Avx2;
using Int = Simd::Int;

// Vectors of planes stay in the register that they are loaded to.
struct LoadOnce : Avx2 {
  static Int load_bytes(const void* p) {
    Int value = Avx2::load_bytes(p);
    asm("" : "+x"(value));
    return value;
  }
};

constexpr int kVectorBytes = 4 * Simd::kLanes;
constexpr int kGroupBytes = 2 * kChunkBytes;

// Bytes fetched ahead of use, over all planes together: enough to hide a memory access, since one
// stream moves on the slower the more there are beside it (measured: benchmarks/layout.py).
constexpr size_t kPrefetchBytes = 4096;

constexpr int kVectors = 2;  // of rows at a time

// The activations of a token as the kernel wants them, made once per call.
struct Token {
  const int8_t* codes;
  const float* zeros;   // [groups], -(2^planes - 1) / 2 * sum
  const float* scales;  // [groups], step * scale
};

// How the fields of up to four merged planes are summed. maddubs adds two products
// |code * activation| <= (2^planes - 1) * 127, times 2^position where a field is not shifted down:
//
//     planes   sums   fields of a group in one sum   largest sum
//     1        2      8 of 16, at position 0 or 2    8 * 2 * 4 * 127  = 8128
//     2        2      8, at position 0 or 2          8 * 2 * 12 * 127 = 24384
//     3        1      16, shifted down               16 * 2 * 7 * 127 = 28448
//     4        2      8, the fields of a chunk       8 * 2 * 15 * 127 = 30480
//
// all below 2^15. Sums at position 2 are multiples of 4: shifting them down is exact.
template <int kPlanes>
struct Nibbles {
  static constexpr int kCarriers = kPlanes <= 2 ? 2 : 4;
  static constexpr int kSums = kPlanes == 3 ? 1 : 2;
  using Carriers = Int[kCarriers];

  static constexpr int position(int field) {
    return kCarriers == 4 ? 0 : field % 4 / kCarriers * kCarriers;
  }
  static constexpr int sum_of(int chunk, int field) {
    return kCarriers == 4 ? chunk % kSums : position(field) / kCarriers;
  }
  // Whether no field before it is in the sum of this one.
  static constexpr bool begins_sum(int chunk, int field) {
    if (kCarriers == 4) return field == 0 && chunk < kSums;
    return chunk == 0 && field < 4 && field % kCarriers == 0;
  }

  // Carriers of the lower four fields; those of the upper four lie four bits higher.
  static PLIANT_INLINE void read(const uint8_t* const* planes, size_t offset, Carriers& carriers) {
    if constexpr (kPlanes == 1) {
      carriers[0] = Simd::load_bytes(planes[0] + offset);
      carriers[1] = Simd::shift_right16<1>(carriers[0]);
    } else {
      merge<LoadOnce, kPlanes>(planes, offset, carriers);
    }
  }
};

// The steps below are assembly because gcc would load each operand anew for every use: with AVX2
// on Zen 3 loads are what it runs out of first.

// Products of one field: those that begin the sums, or are added to them.
template <bool kBegin>
PLIANT_INLINE void add_field(Int first, Int second, Int mask, const int8_t* activations,
                             Int (&sums)[kVectors]) {
  Int four, codes;
  if constexpr (kBegin) {
    asm("vpbroadcastd %[from], %[four]\n\t"
        "vpand %[mask], %[first], %[codes]\n\t"
        "vpmaddubsw %[four], %[codes], %[sum0]\n\t"
        "vpand %[mask], %[second], %[codes]\n\t"
        "vpmaddubsw %[four], %[codes], %[sum1]"
        : [sum0] "=&x"(sums[0]), [sum1] "=&x"(sums[1]), [four] "=&x"(four), [codes] "=&x"(codes)
        : [from] "m"(four_at(activations)), [mask] "x"(mask), [first] "x"(first),
          [second] "x"(second));
  } else {
    asm("vpbroadcastd %[from], %[four]\n\t"
        "vpand %[mask], %[first], %[codes]\n\t"
        "vpmaddubsw %[four], %[codes], %[codes]\n\t"
        "vpaddw %[codes], %[sum0], %[sum0]\n\t"
        "vpand %[mask], %[second], %[codes]\n\t"
        "vpmaddubsw %[four], %[codes], %[codes]\n\t"
        "vpaddw %[codes], %[sum1], %[sum1]"
        : [sum0] "+x"(sums[0]), [sum1] "+x"(sums[1]), [four] "=&x"(four), [codes] "=&x"(codes)
        : [from] "m"(four_at(activations)), [mask] "x"(mask), [first] "x"(first),
          [second] "x"(second));
  }
}

// words[sum][vector] of kChunks chunks.
template <int kPlanes, int kChunks>
PLIANT_INLINE void sum_nibbles(const uint8_t* const* planes, size_t offset,
                               const int8_t* activations,
                               Int (&words)[Nibbles<kPlanes>::kSums][kVectors]) {
  using Layout = Nibbles<kPlanes>;
  unroll<kChunks>([&](auto chunk) PLIANT_BODY {
    typename Layout::Carriers first, second;
    const size_t at = offset + size_t(chunk) * kChunkBytes;
    Layout::read(planes, at, first);
    Layout::read(planes, at + kVectorBytes, second);
    unroll<kFields>([&](auto field) PLIANT_BODY {
      constexpr int kCarrier = field % Layout::kCarriers;
      if constexpr (field >= 4 && field - kCarrier == 4) {  // first use of the upper half
        first[kCarrier] = Simd::shift_right16<4>(first[kCarrier]);
        second[kCarrier] = Simd::shift_right16<4>(second[kCarrier]);
      }
      add_field<Layout::begins_sum(chunk, field)>(
          first[kCarrier], second[kCarrier],
          Simd::set8(low_bits(kPlanes) << Layout::position(field)),
          activations + chunk * kChunkColumns + field * 4, words[Layout::sum_of(chunk, field)]);
    });
  });
}

// The sums of a nibble times kWeight, in 32 bits.
template <int kPlanes, int kChunks, int kWeight>
PLIANT_INLINE Int widen(Int first, Int last) {
  const Int weight = _mm256_set1_epi16(kWeight);
  if constexpr (kPlanes <= 2) {
    return _mm256_madd_epi16(_mm256_add_epi16(first, _mm256_srai_epi16(last, 2)), weight);
  } else if constexpr (kPlanes == 4 && kChunks == 2) {
    return Simd::add32(_mm256_madd_epi16(first, weight), _mm256_madd_epi16(last, weight));
  } else {
    return _mm256_madd_epi16(first, weight);
  }
}

// dots[vector] = kWeight * sum of code * activation over kChunks chunks, or += that.
template <int kPlanes, int kChunks, int kWeight, bool kAdd>
PLIANT_INLINE void dot_nibbles(const uint8_t* const* planes, size_t offset,
                               const int8_t* activations, Int (&dots)[kVectors]) {
  constexpr int kSums = Nibbles<kPlanes>::kSums;
  Int words[kSums][kVectors];
  sum_nibbles<kPlanes, kChunks>(planes, offset, activations, words);
  unroll<kVectors>([&](auto vector) PLIANT_BODY {
    const Int wide = widen<kPlanes, kChunks, kWeight>(words[0][vector], words[kSums - 1][vector]);
    dots[vector] = kAdd ? Simd::add32(dots[vector], wide) : wide;
  });
}

// sums[row] += the products of one group.
template <int kPlanes, int kChunks>
PLIANT_INLINE void add_group(const uint8_t* const* planes, const uint16_t* scales,
                             const Token& token, int group, float (&sums)[kTileRows]) {
  const int8_t* activations = token.codes + group * kGroupColumns;
#pragma GCC unroll 1
  for (int row = 0; row < kTileRows; row += kVectors * Simd::kLanes) {
    const size_t offset = size_t(group) * kGroupBytes + size_t(row) * 4;
    Int dots[kVectors];
    if constexpr (kPlanes <= kNibblePlanes) {
      dot_nibbles<kPlanes, kChunks, 1, false>(planes, offset, activations, dots);
    } else {  // linear in the code: 16 * upper + lower nibble
      constexpr int kHigh = kPlanes - kNibblePlanes;
      dot_nibbles<kHigh, kChunks, 16, false>(planes, offset, activations, dots);
      dot_nibbles<kNibblePlanes, kChunks, 1, true>(planes + kHigh, offset, activations, dots);
    }
    unroll<kVectors>([&](auto vector) PLIANT_BODY {
      const int first = row + vector * Simd::kLanes;
      const __m256 centred = Simd::add(Simd::to_float(dots[vector]), Simd::set(token.zeros[group]));
      const __m256 scale = Simd::mul(Simd::load_half(scales + group * kTileRows + first),
                                     Simd::set(token.scales[group]));
      Simd::store(sums + first, Simd::fma(centred, scale, Simd::load(sums + first)));
    });
  }
}

template <int kPlanes>
void multiply_tile(const PlaneMatrix& matrix, int tile, const Token& token, float* y) {
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales();
  alignas(64) float sums[kTileRows] = {};
  const int num_whole = matrix.chunks() / 2;
  for (int group = 0; group < num_whole; ++group) {
    const size_t ahead = size_t(group) * kGroupBytes + kPrefetchBytes / kPlanes;
    unroll<kPlanes>([&](auto plane) PLIANT_BODY {
      unroll<kGroupBytes / 64>([&](auto line) PLIANT_BODY {
        _mm_prefetch(planes[plane] + ahead + line * 64, _MM_HINT_T0);
      });
    });
    add_group<kPlanes, 2>(planes, scales, token, group, sums);
  }
  if (num_whole < matrix.groups()) add_group<kPlanes, 1>(planes, scales, token, num_whole, sums);
  const int num_rows = std::min(matrix.rows - tile * kTileRows, kTileRows);
  std::memcpy(y + size_t(tile) * kTileRows, sums, size_t(num_rows) * sizeof(float));
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
  with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      for (size_t token = 0; token < size_t(x.tokens); ++token) {
        const Token one{x.codes + token * size_t(x.stride), zeros + token * groups,
                        scales + token * groups};
        multiply_tile<planes>(matrix, tile, one, y + token * y_stride);
      }
    }
  });
}

}  // namespace pliant
