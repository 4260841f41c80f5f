// Planes times int8 activations of a few tokens with AVX-512 VNNI: bound by the reading of memory.
//
// A dword lane is a row, so no sum crosses lanes; the activation dword of a field is a broadcast
// operand of the dot product itself. Fields are masked but not shifted: each bit position has its
// own accumulator, shifted once per group.
//
// In units of the group's scale the contract's  n = 2 * step * dot + (step - 256) * sum  is
// 2 * step * (dot + zero) with zero = -(2^planes - 1) / 2 * sum, a multiple of one half; |dot| and
// |dot + zero| stay below 64 * 255 * 127 < 2^21, so that fp32 holds both exactly, and factors of
// two move freely between the operands of the final fma (quantize keeps scales far from under- and
// overflow). Hence equality with the scalar definition to the last bit.
#include "kernels/planes_avx512.h"

#include <algorithm>

#include "kernels/simd_avx512.h"

namespace pliant {
namespace {

using Simd = Avx512;
using Int = Simd::Int;

// Far enough to hide a memory access behind the groups in between (measured:
// benchmarks/kernels.py).
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

// dots[token] = sum of code * activation over kChunks chunks for 16 rows, of at most four planes.
template <int kPlanes, int kChunks, int kTokens>
PLIANT_INLINE void dot_nibbles(const uint8_t* const* planes, size_t offset,
                               const int8_t* activations, size_t stride, Int (&dots)[kTokens]) {
  constexpr int kSlot = slot_bits(kPlanes);
  Int sums[kTokens][4];
  unroll<4 * kTokens>([&](auto i) PLIANT_BODY { sums[i / 4][i % 4] = Simd::set32(0); });
  unroll<kChunks>([&](auto chunk) PLIANT_BODY {
    Int carriers[kSlot];
    merge<Simd, kPlanes>(planes, offset + size_t(chunk) * kChunkBytes, carriers);
    // Single bits: one shift per chunk leaves four positions in place of eight.
    const Int upper = kSlot == 1 ? Simd::shift_right16<4>(carriers[0]) : carriers[0];
    unroll<kFields>([&](auto field) PLIANT_BODY {
      constexpr int kCarrier = field % kSlot;
      constexpr int kPosition = kSlot == 1 ? field % 4 : field - kCarrier;
      constexpr int kSum = kSlot == 4 ? kPosition / 4 + 2 * (kCarrier % 2) : kPosition / kSlot;
      const Int source = kSlot == 1 && field >= 4 ? upper : carriers[kCarrier];
      const Int codes = Simd::bit_and(source, Simd::set8(low_bits(kPlanes) << kPosition));
      const int8_t* four = activations + chunk * kChunkColumns + field * 4;
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        dot_step(sums[token][kSum], codes, four + token * stride);
      });
    });
  });
  unroll<kTokens>([&](auto token) PLIANT_BODY {
    const Int(&sum)[4] = sums[token];
    if constexpr (kSlot == 4) {
      dots[token] = Simd::add32(Simd::add32(sum[0], sum[2]),
                                Simd::shift_right32<4>(Simd::add32(sum[1], sum[3])));
    } else {
      const Int low = Simd::add32(sum[0], Simd::shift_right32<kSlot>(sum[1]));
      const Int high = Simd::add32(sum[2], Simd::shift_right32<kSlot>(sum[3]));
      dots[token] = Simd::add32(low, Simd::shift_right32<2 * kSlot>(high));
    }
  });
}

// The dot product is linear in the code: above four planes it is 16 * upper + lower nibble.
template <int kPlanes, int kChunks, int kTokens>
PLIANT_INLINE void dot_codes(const uint8_t* const* planes, size_t offset, const int8_t* activations,
                             size_t stride, Int (&dots)[kTokens]) {
  if constexpr (kPlanes <= kNibblePlanes) {
    dot_nibbles<kPlanes, kChunks>(planes, offset, activations, stride, dots);
  } else {
    constexpr int kHigh = kPlanes - kNibblePlanes;
    Int low[kTokens];
    dot_nibbles<kHigh, kChunks>(planes, offset, activations, stride, dots);
    dot_nibbles<kNibblePlanes, kChunks>(planes + kHigh, offset, activations, stride, low);
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      dots[token] = Simd::add32(Simd::shift_left32<kNibblePlanes>(dots[token]), low[token]);
    });
  }
}

// y[token][half] += the products of one group.
template <int kPlanes, int kChunks, int kTokens>
PLIANT_INLINE void add_group(const uint8_t* const* planes, const uint16_t* scales,
                             const Tokens& tokens, int group, __m512 (&y)[kTokens][2]) {
  unroll<2>([&](auto half) PLIANT_BODY {
    const size_t offset = size_t(group) * 2 * kChunkBytes + half * 64;
    Int dots[kTokens];
    dot_codes<kPlanes, kChunks>(planes, offset, tokens.codes + group * kGroupColumns, tokens.stride,
                                dots);
    const __m512 row_scale = Simd::load_half(scales + group * kTileRows + half * 16);
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      const size_t factor = size_t(token) * tokens.groups + size_t(group);
      const __m512 centred =
          _mm512_add_ps(Simd::to_float(dots[token]), Simd::set(tokens.zeros[factor]));
      const __m512 scale = _mm512_mul_ps(row_scale, Simd::set(tokens.scales[factor]));
      y[token][half] = _mm512_fmadd_ps(centred, scale, y[token][half]);
    });
  });
}

template <int kPlanes, int kTokens>
void multiply_tile(const PlaneMatrix& matrix, int tile, const Tokens& tokens, float* y,
                   size_t y_stride) {
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales();
  __m512 sums[kTokens][2];
  unroll<2 * kTokens>([&](auto i) PLIANT_BODY { sums[i / 2][i % 2] = Simd::set(0); });
  const int num_whole = matrix.chunks() / 2;
  for (int group = 0; group < num_whole; ++group) {
    const size_t ahead = size_t(group) * 2 * kChunkBytes + kPrefetchBytes;
    unroll<kPlanes>([&](auto plane) PLIANT_BODY {
      unroll<4>([&](auto line)
                    PLIANT_BODY { _mm_prefetch(planes[plane] + ahead + line * 64, _MM_HINT_T0); });
    });
    add_group<kPlanes, 2>(planes, scales, tokens, group, sums);
  }
  if (num_whole < matrix.groups()) add_group<kPlanes, 1>(planes, scales, tokens, num_whole, sums);
  const int num_rows = std::min(matrix.rows - tile * kTileRows, kTileRows);
  unroll<kTokens>([&](auto token) PLIANT_BODY {
    float* out = y + size_t(token) * y_stride + size_t(tile) * kTileRows;
    Simd::store_first(out, sums[token][0], std::min(num_rows, 16));
    if (num_rows > 16) Simd::store_first(out + 16, sums[token][1], num_rows - 16);
  });
}

// Four tokens keep 16 accumulators in registers. Above four planes each code takes two dot
// products, and unpacking to bytes pays earlier.
template <int kPlanes>
void multiply_tokens(const PlaneMatrix& matrix, int tile, const Tokens& tokens, int num_tokens,
                     float* y, size_t y_stride) {
  if (num_tokens == 1) return multiply_tile<kPlanes, 1>(matrix, tile, tokens, y, y_stride);
  if (num_tokens == 2) return multiply_tile<kPlanes, 2>(matrix, tile, tokens, y, y_stride);
  if constexpr (kPlanes <= kNibblePlanes) {
    if (num_tokens == 3) return multiply_tile<kPlanes, 3>(matrix, tile, tokens, y, y_stride);
    if (num_tokens == 4) return multiply_tile<kPlanes, 4>(matrix, tile, tokens, y, y_stride);
  }
}

}  // namespace

void multiply_few_tokens_avx512(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
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
  with_planes(matrix.num_planes, [&](auto planes) {
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      multiply_tokens<planes>(matrix, tile, tokens, x.tokens, y, y_stride);
    }
  });
}

}  // namespace pliant
