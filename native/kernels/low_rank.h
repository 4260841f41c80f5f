// The contract of low-rank updates y += B (A x), which adapters add to products with planes.
//
// Factors are int8 codes with scales, made for one subnet when it is opened:
//     A[r, column] = a_scale[r, group of 64 columns] * a[r, column]
//     B[row, r]    = b_scale[row] * b[row, r]
// Ranks go by blocks of 8; those beyond the rank are zero. Neighbouring columns of A lie together,
// so that each 32-bit lane of a vector of 16-bit numbers is one rank and no sum crosses lanes.
// low_rank_scalar.cpp is the definition; low_rank_simd.h repeats it for every vector width.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace pliant {

constexpr int kBlockRanks = 8;

// A view of both factors; owns nothing.
struct LowRank {
  int rank = 0;
  int rows = 0;
  int columns = 0;
  const int8_t* a = nullptr;           // [blocks][stride / 2][8 ranks][2 columns]
  const float* a_scales = nullptr;     // [blocks][stride / 64][8 ranks]
  const int8_t* b = nullptr;           // [tiles of 32 rows][rank][32 rows]
  const uint16_t* b_scales = nullptr;  // [tiles * 32], fp16 bits

  int blocks() const { return ceil_div(rank, kBlockRanks); }
  int padded_rank() const { return blocks() * kBlockRanks; }
  int groups() const { return ceil_div(columns, kGroupColumns); }
  int stride() const { return groups() * kGroupColumns; }  // zero beyond the columns
  int tiles() const { return ceil_div(rows, kTileRows); }
};

// Tokens and blocks of ranks that a call sums; results do not depend on how they are split.
struct LowRankPart {
  int token_begin = 0;
  int token_end = 0;
  int block_begin = 0;
  int block_end = 0;
};

struct LowRankKernels {
  // z[token * z_stride + r] for r of the part, whole blocks: A x. Per (r, token), groups in
  // ascending order:
  //   n = sum_c(a * code)                                               (exact in int32)
  //   z = fma(n, a_scale * activation_scale, z), z starting at 0
  // so that all paths agree to the last bit.
  void (*reduce_int8)(const LowRank& factors, const Int8Activations& x, const LowRankPart& part,
                      float* z, size_t z_stride);

  // The same with fp32 activations x[token * x_stride + column]; within a group in any order.
  void (*reduce_f32)(const LowRank& factors, const float* x, size_t x_stride,
                     const LowRankPart& part, float* z, size_t z_stride);

  // y[token * y_stride + row] += (B z)[row] for the rows of tiles [tile_begin, tile_end),
  // row < rows. Per (row, token), r in ascending order:
  //   s = fma(b, z[r], s), s starting at 0;  y = fma(b_scale, s, y)
  // so that all paths agree to the last bit.
  void (*add)(const LowRank& factors, const float* z, int tokens, size_t z_stride, int tile_begin,
              int tile_end, float* y, size_t y_stride);
};

extern const LowRankKernels kLowRankScalar;
extern const LowRankKernels kLowRankAvx2;   // of AVX-512 too: bytes bind it, not arithmetic
extern const LowRankKernels kLowRankAsimd;  // of every ARM path

}  // namespace pliant
