// Planes of signs with scales that are sums of powers of two: the shift-add codec.
//
//     W[row, column] = sum over planes p of scale[p, row / 4] * (bit[p, row, column] ? 1 : -1)
//
// Planes lie as in every PlaneMatrix; the 32 fp16 numbers that it has for a tile and group are the
// scales of up to 4 planes for 8 blocks of 4 rows, [plane][block]. They need no offset, so a prefix
// of planes is read like all of them. bits/shift_add.py is the law.
#pragma once

#include "kernels/kernels.h"

namespace pliant {

// What planes and scales stand for (bits/codec.py).
enum class PlaneForm : int { kUniform = 0, kSigns = 1 };

struct CodedMatrix : PlaneMatrix {
  PlaneForm form = PlaneForm::kUniform;
};

constexpr int kSignPlanes = 4;      // most planes; those beyond have no scales
constexpr int kSignSharedRows = 4;  // rows that share a scale
constexpr int kSignBlocks = kTileRows / kSignSharedRows;

struct SignKernels {
  // y[token * y_stride + row] for the rows of tiles [tile_begin, tile_end), rows < matrix.rows.
  // Per (row, token), groups in ascending order, within them planes in ascending order:
  //   n[p] = 2 * sum_c(bit[p] * code) - sum_of_codes                    (exact in int32)
  //   t = fma(float(n[p]), scale[p], t), t starting at 0
  //   y = fma(t, activation_scale, y), y starting at 0
  // so that all paths agree to the last bit, for any number of tokens.
  void (*product_int8)(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                       int tile_end, float* y, size_t y_stride);

  // The same product with fp32 activations x[token * x_stride + column]: per column in ascending
  // order y = fma(W, x, y), the terms of W added from left to right, beginning at 0.
  void (*product_f32)(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                      int tile_begin, int tile_end, float* y, size_t y_stride);
};

extern const SignKernels kSignsScalar;
extern const SignKernels kSignsAvx2;   // of every path of x86
extern const SignKernels kSignsAsimd;  // of every path of ARM

// Those that go with the other kernels of a path.
const SignKernels& sign_kernels(const Kernels& kernels);

// Row `row` in fp32.
void signs_row(const PlaneMatrix& matrix, int row, float* y);

// The product that multiplies nothing, for finite scales of powers of two on both sides: token t
// has x = code * 2^exponents[t * groups + group], |exponent| <= 1000; x.scales and x.sums are not
// read. Each scale is taken apart into its signed powers of two; integers are negated, shifted and
// added, exactly; then halves and doubles of these sums are added up. y[token * y_stride + row].
void shift_add_int8(const PlaneMatrix& matrix, const Int8Activations& x, const int32_t* exponents,
                    float* y, size_t y_stride);

}  // namespace pliant
