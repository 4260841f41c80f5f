// The definition of the product with ternary weights.
#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "kernels/paths.h"

namespace pliant {
namespace {

int digit_at(const TernaryMatrix& matrix, int row, int column) {
  const int span = column / kTernarySpan, quads = matrix.quads(span);
  const int quad = column % kTernarySpan / 4;
  const size_t byte = size_t(row / kTileRows) * matrix.tile_stride_ternary() +
                      size_t(span) * TernaryMatrix::span_stride_bytes() +
                      size_t(quad % quads * kTileRows + row % kTileRows) * 4 + size_t(column % 4);
  int x = matrix.bytes[byte];
  for (int digit = 0; digit < quad / quads; ++digit) x = 3 * x % 256;
  return 3 * x / 256;
}

float dot(const TernaryMatrix& matrix, const Int8Activations& x, int token, int row) {
  const size_t num_groups = size_t(x.stride / kGroupColumns);
  const int8_t* codes = x.codes + size_t(token) * size_t(x.stride);
  const uint16_t* scales =
      matrix.scales + size_t(row / kTileRows) * matrix.tile_stride_scales() + row % kTileRows;
  float y = 0.0f;
  for (int group = 0; group < matrix.groups(); ++group) {
    const int end = std::min((group + 1) * kGroupColumns, matrix.columns);
    int n = 0;
    for (int column = group * kGroupColumns; column < end; ++column) {
      n += (digit_at(matrix, row, column) - 1) * codes[column];
    }
    const float scale = half_to_float(scales[group * kTileRows]);
    y = std::fma(float(n), scale * x.scales[size_t(token) * num_groups + size_t(group)], y);
  }
  return y;
}

}  // namespace

void ternary_int8_scalar(const TernaryMatrix& matrix, const Int8Activations& x, int tile_begin,
                         int tile_end, float* y, size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int token = 0; token < x.tokens; ++token) {
    for (int row = tile_begin * kTileRows; row < row_end; ++row) {
      y[size_t(token) * y_stride + size_t(row)] = dot(matrix, x, token, row);
    }
  }
}

}  // namespace pliant
