// Planes times int8 activations of one token with AVX-512 VNNI: bound by the reading of memory.
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

// One token's activations as the kernel wants them, made once per call.
struct TokenFactors {
  const float* zeros;   // [groups] -(2^planes - 1) / 2 * sum
  const float* scales;  // [groups] step * scale
};

// gcc 12 copies the accumulators of the intrinsic and splits off the broadcast.
PLIANT_INLINE void dot_step(Int& sum, Int codes, const int8_t* activations) {
  struct Four {
    int8_t value[4];
  };
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum)
      : "v"(codes), "m"(*reinterpret_cast<const Four*>(activations)));
}

// Sum of code * activation over kChunks chunks for 16 rows, of at most four planes.
template <int kPlanes, int kChunks>
PLIANT_INLINE Int dot_nibbles(const uint8_t* const* planes, size_t offset,
                              const int8_t* activations) {
  constexpr int kSlot = slot_bits(kPlanes);
  Int sums[4] = {Simd::set32(0), Simd::set32(0), Simd::set32(0), Simd::set32(0)};
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
      dot_step(sums[kSum], codes, activations + chunk * kChunkColumns + field * 4);
    });
  });
  if constexpr (kSlot == 4) {
    return Simd::add32(Simd::add32(sums[0], sums[2]),
                       Simd::shift_right32<4>(Simd::add32(sums[1], sums[3])));
  } else {
    const Int low = Simd::add32(sums[0], Simd::shift_right32<kSlot>(sums[1]));
    const Int high = Simd::add32(sums[2], Simd::shift_right32<kSlot>(sums[3]));
    return Simd::add32(low, Simd::shift_right32<2 * kSlot>(high));
  }
}

// The dot product is linear in the code: above four planes it is 16 * upper + lower nibble.
template <int kPlanes, int kChunks>
PLIANT_INLINE Int dot_codes(const uint8_t* const* planes, size_t offset,
                            const int8_t* activations) {
  if constexpr (kPlanes <= kNibblePlanes) {
    return dot_nibbles<kPlanes, kChunks>(planes, offset, activations);
  } else {
    constexpr int kHigh = kPlanes - kNibblePlanes;
    const Int high = dot_nibbles<kHigh, kChunks>(planes, offset, activations);
    const Int low = dot_nibbles<kNibblePlanes, kChunks>(planes + kHigh, offset, activations);
    return Simd::add32(Simd::shift_left32<kNibblePlanes>(high), low);
  }
}

template <int kPlanes, int kChunks>
PLIANT_INLINE void add_group(const uint8_t* const* planes, size_t offset, const uint16_t* scales,
                             const int8_t* activations, const TokenFactors& token, int group,
                             __m512 (&y)[2]) {
  unroll<2>([&](auto half) PLIANT_BODY {
    const Int dot = dot_codes<kPlanes, kChunks>(planes, offset + half * 64, activations);
    const __m512 centred = _mm512_add_ps(Simd::to_float(dot), Simd::set(token.zeros[group]));
    const __m512 scale =
        _mm512_mul_ps(Simd::load_half(scales + half * 16), Simd::set(token.scales[group]));
    y[half] = _mm512_fmadd_ps(centred, scale, y[half]);
  });
}

template <int kPlanes>
void multiply_tile(const PlaneMatrix& matrix, int tile, const int8_t* codes,
                   const TokenFactors& token, float* y) {
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales();
  __m512 sums[2] = {Simd::set(0), Simd::set(0)};
  const int num_whole = matrix.chunks() / 2;
  for (int group = 0; group < num_whole; ++group) {
    const size_t offset = size_t(group) * 2 * kChunkBytes;
    unroll<kPlanes>([&](auto plane) PLIANT_BODY {
      unroll<4>([&](auto line) PLIANT_BODY {
        _mm_prefetch(planes[plane] + offset + kPrefetchBytes + line * 64, _MM_HINT_T0);
      });
    });
    add_group<kPlanes, 2>(planes, offset, scales + group * kTileRows, codes + group * kGroupColumns,
                          token, group, sums);
  }
  if (num_whole < matrix.groups()) {
    add_group<kPlanes, 1>(planes, size_t(num_whole) * 2 * kChunkBytes,
                          scales + num_whole * kTileRows, codes + num_whole * kGroupColumns, token,
                          num_whole, sums);
  }
  const int num_rows = std::min(matrix.rows - tile * kTileRows, kTileRows);
  float* out = y + size_t(tile) * kTileRows;
  Simd::store_first(out, sums[0], std::min(num_rows, 16));
  if (num_rows > 16) Simd::store_first(out + 16, sums[1], num_rows - 16);
}

}  // namespace

void multiply_one_token_avx512(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                               int tile_end, float* y, float* scratch) {
  const int groups = matrix.groups();
  const float unit = -0.5f * float(low_bits(matrix.num_planes));
  const float step = float(1 << (kMaxPlanes - matrix.num_planes));
  float* zeros = scratch;
  float* scales = scratch + groups;
  for (int group = 0; group < groups; ++group) {
    zeros[group] = unit * float(x.sums[group]);
    scales[group] = step * x.scales[group];
  }
  with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      multiply_tile<planes>(matrix, tile, x.codes, {zeros, scales}, y);
    }
  });
}

}  // namespace pliant
