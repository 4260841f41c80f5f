// Planes times int8 activations of many tokens with AVX-512 VNNI: bound by arithmetic.
//
// Up to kSuperTokens tokens and kSpanColumns columns at a time, the activations are packed in the
// order the inner loop reads them, so that no two lines meet in one cache set, and stay in the
// second-level cache. Against them, tile by tile, the planes are unpacked once to bytes, and a
// block of 32 rows x up to 12 tokens is kept in 24 registers: one load of codes serves 12 tokens,
// one broadcast serves 32 rows.
//
// Arithmetic as in planes_avx512.cpp; with up to 7 planes the bytes hold 2 * code, so that the
// accumulators start at (1 - 2^planes) * sum and need nothing added at the end.
#include <algorithm>
#include <cstring>

#include "kernels/planes_avx512.h"
#include "kernels/simd_avx512.h"

namespace pliant {
namespace {

using Simd = Avx512;
using Int = Simd::Int;

constexpr int kBlockTokens = 12;
constexpr int kQuads = kGroupColumns / 4;  // dot-product steps of a group
constexpr int kGroupCodeBytes = kTileRows * kGroupColumns;
constexpr int kSpanColumns = 2048;  // 64 KiB of unpacked codes
constexpr int kSpanGroups = kSpanColumns / kGroupColumns;
constexpr int kSuperTokens = 192;  // 384 KiB of packed activations

// One block of tokens over one span of groups, packed.
struct Block {
  const int8_t* activations;  // [group][token][64 columns]
  const int32_t* starts;      // [group][token]
  const float* zeros;         // [group][token], used with 8 planes only
  const float* scales;        // [group][token]
};

// Where the parts of the scratch lie; all offsets are multiples of 64 bytes.
struct Scratch {
  uint8_t* codes;  // [group of the span][quad][32 rows][4 columns]
  int8_t* activations;
  int32_t* starts;
  float* zeros;
  float* scales;
  float* sums;  // [token of the block][32 rows]
  size_t num_bytes;

  Scratch(void* memory, int groups, int tokens) {
    const size_t span = size_t(std::min(groups, kSpanGroups));
    const size_t num_tokens = size_t(std::min(tokens, kSuperTokens));
    const size_t num_factors = (span * num_tokens + 15) / 16 * 16;
    num_bytes = 0;
    // `memory` may be null, to learn the size.
    const auto take = [&]<typename T>(T*& part, size_t size) {
      part = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + num_bytes);
      num_bytes += size * sizeof(T);
    };
    take(codes, span * kGroupCodeBytes);
    take(activations, span * num_tokens * kGroupColumns);
    take(starts, num_factors);
    take(zeros, num_factors);
    take(scales, num_factors);
    take(sums, size_t(kBlockTokens * kTileRows));
  }
};

// Blocks of equal size serve tokens better than full ones and a small rest.
struct Blocks {
  int tokens;
  int count() const { return ceil_div(tokens, kBlockTokens); }
  int begin(int block) const { return int(int64_t(tokens) * block / count()); }
};

// 2 * code (8 planes: code) of the chunks of one tile in a span; a missing second chunk is zero.
template <int kPlanes>
void unpack_span(const PlaneMatrix& matrix, int tile, int group_begin, int group_end,
                 uint8_t* codes) {
  constexpr int kShift = kPlanes < kMaxPlanes ? 1 : 0;
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const int chunk_end = std::min(group_end * 2, matrix.chunks());
  for (int chunk = group_begin * 2; chunk < chunk_end; ++chunk) {
    for (int half = 0; half < 2; ++half) {
      const size_t offset = size_t(chunk) * kChunkBytes + size_t(half) * 64;
      for_each_field<Simd, kPlanes, kShift>(planes, offset, [&](auto field, Int bytes) PLIANT_BODY {
        _mm512_store_si512(codes + field * 128 + half * 64, bytes);
      });
    }
    codes += kGroupCodeBytes / 2;
  }
  if (chunk_end < group_end * 2) std::memset(codes, 0, kGroupCodeBytes / 2);
}

// sums[token][row] += the products of the groups of a span.
template <bool kAddZeros, int kTokens>
void multiply_block(const uint8_t* codes, const Block& block, const uint16_t* row_scales,
                    int groups, float* sums) {
  // A dot step takes 5 cycles and two can start in each: few tokens need twice the chains.
  constexpr int kChains = kTokens < 5 ? 2 : 1;
  const int8_t* activations = block.activations;
  for (int group = 0; group < groups; ++group) {
    Int low[kChains][kTokens], high[kChains][kTokens];
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      low[0][token] = high[0][token] = Simd::set32(block.starts[group * kTokens + token]);
      if constexpr (kChains == 2) low[1][token] = high[1][token] = Simd::set32(0);
    });
#pragma GCC unroll 1
    for (int quad = 0; quad < kQuads; quad += kChains) {
      unroll<kChains>([&](auto chain) PLIANT_BODY {
        const Int low_rows = _mm512_load_si512(codes);
        const Int high_rows = _mm512_load_si512(codes + 64);
        unroll<kTokens>([&](auto token) PLIANT_BODY {
          int32_t four;
          std::memcpy(&four, activations + token * kGroupColumns + chain * 4, 4);
          dot_step(low[chain][token], low_rows, Simd::set32(four));
          dot_step(high[chain][token], high_rows, Simd::set32(four));
        });
        codes += 2 * 64;
      });
      activations += 4 * kChains;
    }
    activations += (kTokens - 1) * kGroupColumns;
    const __m512 low_scale = Simd::load_half(row_scales + group * kTileRows);
    const __m512 high_scale = Simd::load_half(row_scales + group * kTileRows + 16);
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      if constexpr (kChains == 2) {
        low[0][token] = Simd::add32(low[0][token], low[1][token]);
        high[0][token] = Simd::add32(high[0][token], high[1][token]);
      }
      __m512 low_dot = Simd::to_float(low[0][token]);
      __m512 high_dot = Simd::to_float(high[0][token]);
      if constexpr (kAddZeros) {
        const __m512 zero = Simd::set(block.zeros[group * kTokens + token]);
        low_dot = _mm512_add_ps(low_dot, zero);
        high_dot = _mm512_add_ps(high_dot, zero);
      }
      const __m512 scale = Simd::set(block.scales[group * kTokens + token]);
      float* out = sums + token * kTileRows;
      _mm512_store_ps(
          out, _mm512_fmadd_ps(low_dot, _mm512_mul_ps(low_scale, scale), _mm512_load_ps(out)));
      _mm512_store_ps(out + 16, _mm512_fmadd_ps(high_dot, _mm512_mul_ps(high_scale, scale),
                                                _mm512_load_ps(out + 16)));
    });
    // Keeps gcc from holding the sums on the stack beside their place.
    asm volatile("" ::: "memory");
  }
}

template <bool kAddZeros>
void multiply_block_of(int tokens, const uint8_t* codes, const Block& block,
                       const uint16_t* row_scales, int groups, float* sums) {
  using Function = void (*)(const uint8_t*, const Block&, const uint16_t*, int, float*);
  static constexpr Function kFunctions[kBlockTokens] = {
      multiply_block<kAddZeros, 1>,  multiply_block<kAddZeros, 2>,  multiply_block<kAddZeros, 3>,
      multiply_block<kAddZeros, 4>,  multiply_block<kAddZeros, 5>,  multiply_block<kAddZeros, 6>,
      multiply_block<kAddZeros, 7>,  multiply_block<kAddZeros, 8>,  multiply_block<kAddZeros, 9>,
      multiply_block<kAddZeros, 10>, multiply_block<kAddZeros, 11>, multiply_block<kAddZeros, 12>};
  kFunctions[tokens - 1](codes, block, row_scales, groups, sums);
}

// Tokens [token, token + count) over one span of groups.
struct Part {
  int token;
  int count;
  int group_begin;
  int group_end;
  int groups() const { return group_end - group_begin; }
};

void pack_activations(const PlaneMatrix& matrix, const Int8Activations& x, const Part& part,
                      const Scratch& scratch) {
  const bool doubled = matrix.num_planes < kMaxPlanes;
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
        scratch.starts[factor] = doubled ? -low_bits(matrix.num_planes) * x.sums[from] : 0;
        scratch.zeros[factor] = -127.5f * float(x.sums[from]);
        scratch.scales[factor] = (doubled ? 0.5f * step : step) * x.scales[from];
        const int8_t* codes = x.codes + from * kGroupColumns;
        std::memcpy(scratch.activations + factor * kGroupColumns, codes, kGroupColumns);
      }
    }
  }
}

// Copies between the block's sums and the rows of y that exist.
void load_sums(const float* y, size_t y_stride, int tokens, int num_rows, float* sums) {
  for (int token = 0; token < tokens; ++token) {
    std::memcpy(sums + token * kTileRows, y + size_t(token) * y_stride,
                size_t(num_rows) * sizeof(float));
  }
}
void store_sums(const float* sums, int tokens, int num_rows, float* y, size_t y_stride) {
  for (int token = 0; token < tokens; ++token) {
    std::memcpy(y + size_t(token) * y_stride, sums + token * kTileRows,
                size_t(num_rows) * sizeof(float));
  }
}

// Brings a share of the planes that the next tile will unpack into the second-level cache.
void prefetch_share(const PlaneMatrix& matrix, const Part& part, int tile, int share,
                    int num_shares) {
  const size_t begin = size_t(part.group_begin) * 2 * kChunkBytes;
  const size_t lines =
      size_t(std::min(part.group_end * 2, matrix.chunks())) * kChunkBytes / 64 - begin / 64;
  const size_t first = lines * size_t(share) / size_t(num_shares);
  const size_t last = lines * size_t(share + 1) / size_t(num_shares);
  for (int plane = 0; plane < matrix.num_planes; ++plane) {
    const uint8_t* from =
        matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes() + begin;
    for (size_t line = first; line < last; ++line) _mm_prefetch(from + line * 64, _MM_HINT_T1);
  }
}

template <int kPlanes>
void multiply_part(const PlaneMatrix& matrix, const Part& part, int tile, int tile_end,
                   const Scratch& scratch, float* y, size_t y_stride) {
  unpack_span<kPlanes>(matrix, tile, part.group_begin, part.group_end, scratch.codes);
  const uint16_t* row_scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales() +
                               size_t(part.group_begin) * kTileRows;
  const int num_rows = std::min(matrix.rows - tile * kTileRows, kTileRows);
  const Blocks blocks{part.count};
  for (int block = 0; block < blocks.count(); ++block) {
    if (tile + 1 < tile_end) prefetch_share(matrix, part, tile + 1, block, blocks.count());
    const int begin = blocks.begin(block);
    const int size = blocks.begin(block + 1) - begin;
    const size_t base = size_t(begin) * size_t(part.groups());
    const Block packed{scratch.activations + base * kGroupColumns, scratch.starts + base,
                       scratch.zeros + base, scratch.scales + base};
    float* out = y + size_t(part.token + begin) * y_stride + size_t(tile) * kTileRows;
    std::memset(scratch.sums, 0, sizeof(float) * size_t(size) * kTileRows);
    if (part.group_begin > 0) load_sums(out, y_stride, size, num_rows, scratch.sums);
    multiply_block_of<kPlanes == kMaxPlanes>(size, scratch.codes, packed, row_scales, part.groups(),
                                             scratch.sums);
    store_sums(scratch.sums, size, num_rows, out, y_stride);
  }
}

}  // namespace

void multiply_token_blocks_avx512(const PlaneMatrix& matrix, const Int8Activations& x,
                                  int tile_begin, int tile_end, float* y, size_t y_stride,
                                  void* memory) {
  const Scratch scratch(memory, matrix.groups(), x.tokens);
  const int num_parts = ceil_div(x.tokens, kSuperTokens);
  for (int super = 0; super < num_parts; ++super) {
    const int token = int(int64_t(x.tokens) * super / num_parts);
    const int token_end = int(int64_t(x.tokens) * (super + 1) / num_parts);
    for (int group = 0; group < matrix.groups(); group += kSpanGroups) {
      const Part part{token, token_end - token, group,
                      std::min(group + kSpanGroups, matrix.groups())};
      pack_activations(matrix, x, part, scratch);
      with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
        for (int tile = tile_begin; tile < tile_end; ++tile) {
          multiply_part<planes>(matrix, part, tile, tile_end, scratch, y, y_stride);
        }
      });
    }
  }
}

size_t token_blocks_scratch_avx512(const PlaneMatrix& matrix, int tokens) {
  return Scratch(nullptr, matrix.groups(), tokens).num_bytes;
}

}  // namespace pliant
