// Planes times int8 activations of many tokens with the 8-bit matrix extension of ARM.
//
// One instruction multiplies 2 rows x 8 columns of codes with 8 columns x 2 tokens. So columns go
// by eights: up to kSuperTokens tokens and kSpanColumns columns at a time, activations are packed
// by pairs of tokens, and against them, tile by tile, the planes are unpacked once to bytes by
// pairs of rows. A block of 8 rows x 8 tokens keeps 16 accumulators of 2 x 2 and loads 8 vectors
// for 16 products.
//
// Codes are unsigned bytes and activations signed, so that eight planes are one piece; sums are 32
// bits wide. Exactness of the rest as in planes_avx512.cpp.
#include "kernels/blocks_i8mm.h"

#include <algorithm>
#include <cstring>

#include "kernels/simd_i8mm.h"

namespace pliant {
namespace {

using Simd = NeonI8mm;
using Float = Simd::Float;
using Int = Simd::Int;

constexpr int kEight = 8;  // columns of one matrix product
constexpr int kGroupEights = kGroupColumns / kEight;
constexpr int kChunkEights = kChunkColumns / kEight;
constexpr int kPairBytes = 2 * kEight;  // two rows or two tokens, eight columns
constexpr int kEightCodeBytes = kTileRows * kEight;
constexpr int kBlockRows = 8;
constexpr int kBlockPairs = 4;      // of tokens
constexpr int kSpanColumns = 1024;  // 32 KiB of codes: half of a first-level cache
constexpr int kSuperTokens = 64;    // 64 KiB of packed activations
constexpr int kSpanGroups = kSpanColumns / kGroupColumns;

// Where the parts of the scratch lie; all offsets are multiples of 64 bytes.
struct Scratch {
  uint8_t* codes;       // [eight of the span][16 pairs of rows][2 rows][8 columns]
  int8_t* activations;  // [pair of tokens][eight of the span][2 tokens][8 columns]
  size_t num_bytes;

  Scratch(void* memory, int groups, int tokens) {
    const size_t span_columns = size_t(std::min(groups, kSpanGroups)) * kGroupColumns;
    const size_t num_pairs = size_t(ceil_div(std::min(tokens, kSuperTokens), 2));
    const size_t code_bytes = span_columns * kTileRows;
    num_bytes = code_bytes + span_columns * 2 * num_pairs;
    // `memory` may be null, to learn the size.
    const auto address = reinterpret_cast<uintptr_t>(memory);
    codes = reinterpret_cast<uint8_t*>(address);
    activations = reinterpret_cast<int8_t*>(address + code_bytes);
  }
};

// Tokens [token, token + count) over one span of groups.
struct Part {
  int token;
  int count;
  int group_begin;
  int group_end;
  int eights() const { return (group_end - group_begin) * kGroupEights; }
};

// A missing second token is zero.
void pack_activations(const Int8Activations& x, const Part& part, int8_t* packed) {
  for (int pair = 0; pair < ceil_div(part.count, 2); ++pair) {
    for (int eight = 0; eight < part.eights(); ++eight, packed += kPairBytes) {
      const size_t column = size_t(part.group_begin) * kGroupColumns + size_t(eight) * kEight;
      for (int token = 0; token < 2; ++token) {
        int8_t* to = packed + token * kEight;
        if (2 * pair + token < part.count) {
          const size_t row = size_t(part.token + 2 * pair + token) * size_t(x.stride);
          std::memcpy(to, x.codes + row + column, kEight);
        } else {
          std::memset(to, 0, kEight);
        }
      }
    }
  }
}

// Codes of the chunks of one tile in a span. Fields 2e and 2e + 1 of a vector are four rows of the
// eight columns of e: zipped by rows they are two pairs.
template <int kPlanes>
void unpack_span(const PlaneMatrix& matrix, int tile, const Part& part, uint8_t* codes) {
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const int chunk_end = std::min(part.group_end * 2, matrix.chunks());
  for (int chunk = part.group_begin * 2; chunk < chunk_end; ++chunk) {
    for (int four = 0; four < kTileRows / 4; ++four) {
      const size_t offset = size_t(chunk) * kChunkBytes + size_t(four) * 16;
      Int fields[kFields];
      for_each_field<Simd, kPlanes, 0>(
          planes, offset, [&](auto field, Int bytes) PLIANT_BODY { fields[field] = bytes; });
      uint8_t* to = codes + four * 2 * kPairBytes;
      unroll<kChunkEights>([&](auto eight) PLIANT_BODY {
        const Int even = fields[2 * eight], odd = fields[2 * eight + 1];
        Simd::store_bytes(to + eight * kEightCodeBytes, vzip1q_s32(even, odd));
        Simd::store_bytes(to + eight * kEightCodeBytes + kPairBytes, vzip2q_s32(even, odd));
      });
    }
    codes += kChunkEights * kEightCodeBytes;
  }
}

// The activations, rows and results of one block.
struct Block {
  const Int8Activations& x;
  const Part& part;
  const int8_t* activations;  // of its first pair of tokens
  const uint8_t* codes;       // of its first pair of rows
  const uint16_t* scales;     // of its first row and the first group of the span
  int token;                  // first of the block
  int num_tokens;
  int num_rows;    // up to 8
  int num_chunks;  // of the matrix
  float* y;        // of the first token and row
  size_t y_stride;
};

// y[token][row] += the products of the groups of a span.
template <int kPlanes, int kPairs>
void multiply_block(const Block& block) {
  constexpr float kUnit = -0.5f * float(low_bits(kPlanes));
  constexpr float kStep = float(1 << (kMaxPlanes - kPlanes));
  const size_t num_groups = size_t(block.x.stride / kGroupColumns);
  const size_t pair_stride = size_t(block.part.eights()) * kPairBytes;
  const bool first_span = block.part.group_begin == 0;
  Float sums[2 * kPairs][2];  // [token][four rows]
  unroll<4 * kPairs>([&](auto i) PLIANT_BODY {
    const int token = i / 2, half = i % 2, count = std::clamp(block.num_rows - 4 * half, 0, 4);
    const bool stored = !first_span && token < block.num_tokens && count > 0;
    const float* from = block.y + size_t(token) * block.y_stride + 4 * half;
    sums[i / 2][i % 2] = stored ? Simd::load_first(from, count) : Simd::set(0.0f);
  });
  for (int group = block.part.group_begin; group < block.part.group_end; ++group) {
    const int first = (group - block.part.group_begin) * kGroupEights;
    const int size = std::min(kGroupEights, (block.num_chunks - 2 * group) * kChunkEights);
    Int products[4][kPairs];
    unroll<4 * kPairs>([&](auto i)
                           PLIANT_BODY { products[i / kPairs][i % kPairs] = vdupq_n_s32(0); });
    for (int eight = first; eight < first + size; ++eight) {
      uint8x16_t rows[4];
      unroll<4>([&](auto i) PLIANT_BODY {
        rows[i] = vld1q_u8(block.codes + eight * kEightCodeBytes + i * kPairBytes);
      });
      unroll<kPairs>([&](auto pair) PLIANT_BODY {
        const int8x16_t tokens =
            vld1q_s8(block.activations + size_t(pair) * pair_stride + eight * kPairBytes);
        unroll<4>([&](auto i) PLIANT_BODY {
          products[i][pair] = vusmmlaq_s32(products[i][pair], rows[i], tokens);
        });
      });
    }
    const uint16_t* scales = block.scales + (group - block.part.group_begin) * kTileRows;
    unroll<2>([&](auto half) PLIANT_BODY {
      const Float row_scale = Simd::load_half(scales + 4 * half);
      unroll<2 * kPairs>([&](auto token) PLIANT_BODY {
        if (token >= block.num_tokens) return;
        // Each product is [row][token] of 2 x 2: even places are the first token, odd the second.
        const Int low = products[2 * half][token / 2], high = products[2 * half + 1][token / 2];
        const Int dots = token % 2 == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high);
        const size_t factor = size_t(block.token + token) * num_groups + size_t(group);
        const Float zero = Simd::set(kUnit * float(block.x.sums[factor]));
        const Float scale = Simd::mul(row_scale, Simd::set(kStep * block.x.scales[factor]));
        Float& sum = sums[token][half];
        sum = Simd::fma(Simd::add(Simd::to_float(dots), zero), scale, sum);
      });
    });
  }
  unroll<4 * kPairs>([&](auto i) PLIANT_BODY {
    const int token = i / 2, half = i % 2, count = std::clamp(block.num_rows - 4 * half, 0, 4);
    if (token >= block.num_tokens || count == 0) return;
    Simd::store_first(block.y + size_t(token) * block.y_stride + 4 * half, sums[i / 2][i % 2],
                      count);
  });
}

template <int kPlanes>
void multiply_block_of(const Block& block) {
  switch (ceil_div(block.num_tokens, 2)) {
    case 1:
      return multiply_block<kPlanes, 1>(block);
    case 2:
      return multiply_block<kPlanes, 2>(block);
    case 3:
      return multiply_block<kPlanes, 3>(block);
    default:
      return multiply_block<kPlanes, kBlockPairs>(block);
  }
}

template <int kPlanes>
void multiply_part(const PlaneMatrix& matrix, const Int8Activations& x, const Part& part, int tile,
                   const Scratch& scratch, float* y, size_t y_stride) {
  unpack_span<kPlanes>(matrix, tile, part, scratch.codes);
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales() +
                           size_t(part.group_begin) * kTileRows;
  const size_t pair_stride = size_t(part.eights()) * kPairBytes;
  for (int token = 0; token < part.count; token += 2 * kBlockPairs) {
    for (int row = 0; row < kTileRows; row += kBlockRows) {
      const int num_rows = std::min(matrix.rows - tile * kTileRows - row, kBlockRows);
      if (num_rows <= 0) break;
      multiply_block_of<kPlanes>(
          {x, part, scratch.activations + size_t(token / 2) * pair_stride,
           scratch.codes + row * kEight, scales + row, part.token + token,
           std::min(part.count - token, 2 * kBlockPairs), num_rows, matrix.chunks(),
           y + size_t(part.token + token) * y_stride + size_t(tile * kTileRows + row), y_stride});
    }
  }
}

}  // namespace

void multiply_token_blocks_i8mm(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                                int tile_end, float* y, size_t y_stride, void* memory) {
  const Scratch scratch(memory, matrix.groups(), x.tokens);
  for (int token = 0; token < x.tokens; token += kSuperTokens) {
    for (int group = 0; group < matrix.groups(); group += kSpanGroups) {
      const Part part{token, std::min(x.tokens - token, kSuperTokens), group,
                      std::min(group + kSpanGroups, matrix.groups())};
      pack_activations(x, part, scratch.activations);
      with_planes(matrix.num_planes, [&](auto planes) {
        for (int tile = tile_begin; tile < tile_end; ++tile) {
          multiply_part<planes>(matrix, x, part, tile, scratch, y, y_stride);
        }
      });
    }
  }
}

size_t token_blocks_scratch_i8mm(const PlaneMatrix& matrix, int tokens) {
  return Scratch(nullptr, matrix.groups(), tokens).num_bytes;
}

}  // namespace pliant
