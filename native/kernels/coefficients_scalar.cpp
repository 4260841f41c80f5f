// The definition of the products with planes that have a coefficient each.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/half.h"
#include "kernels/paths.h"

namespace pliant {
namespace {

// One row of the matrix, one value at a time.
class Row {
 public:
  Row(const CoefficientMatrix& matrix, int row)
      : matrix_(matrix),
        lane_(size_t(row / kTileRows) * matrix.tile_stride_bytes() + size_t(row % kTileRows) * 4),
        factor_(size_t(row / kTileRows) * matrix.tile_stride_scales() + size_t(row % kTileRows)) {}

  int bit(int plane, int column) const {
    const size_t chunk = size_t(column / kChunkColumns) * kChunkBytes;
    const uint8_t byte = matrix_.planes[size_t(plane)][lane_ + chunk + size_t(column % 4)];
    return (byte >> (column % kChunkColumns / 4)) & 1;
  }
  float coefficient(int plane, int group) const {
    return half_to_float(matrix_.coefficients[size_t(plane)][factor(group)]);
  }
  float offset(int group) const { return half_to_float(matrix_.offsets[factor(group)]); }

  float value(int column) const {
    const int group = column / kGroupColumns;
    float sum = offset(group);
    for (int plane = 0; plane < matrix_.num_planes; ++plane) {
      if (bit(plane, column) != 0) sum += coefficient(plane, group);
    }
    return sum;
  }

 private:
  size_t factor(int group) const { return factor_ + size_t(group) * kTileRows; }

  const CoefficientMatrix& matrix_;
  size_t lane_;
  size_t factor_;
};

float dot_int8(const CoefficientMatrix& matrix, const Int8Activations& x, int token, int index) {
  const Row row(matrix, index);
  const size_t num_groups = size_t(x.stride / kGroupColumns);
  const int8_t* codes = x.codes + size_t(token) * size_t(x.stride);
  float y = 0.0f;
  for (int group = 0; group < matrix.groups(); ++group) {
    const size_t factor = size_t(token) * num_groups + size_t(group);
    const int end = std::min((group + 1) * kGroupColumns, matrix.columns);
    float term = row.offset(group) * float(x.sums[factor]);
    for (int plane = 0; plane < matrix.num_planes; ++plane) {
      int dot = 0;
      for (int column = group * kGroupColumns; column < end; ++column) {
        dot += row.bit(plane, column) * codes[column];
      }
      term = std::fma(float(dot), row.coefficient(plane, group), term);
    }
    y = std::fma(term, x.scales[factor], y);
  }
  return y;
}

float dot_f32(const CoefficientMatrix& matrix, const float* x, int index) {
  const Row row(matrix, index);
  float y = 0.0f;
  for (int column = 0; column < matrix.columns; ++column) {
    y = std::fma(row.value(column), x[column], y);
  }
  return y;
}

}  // namespace

void coefficients_int8_scalar(const CoefficientMatrix& matrix, const Int8Activations& x,
                              int tile_begin, int tile_end, float* y, size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int token = 0; token < x.tokens; ++token) {
    for (int row = tile_begin * kTileRows; row < row_end; ++row) {
      y[size_t(token) * y_stride + size_t(row)] = dot_int8(matrix, x, token, row);
    }
  }
}

void coefficients_f32_scalar(const CoefficientMatrix& matrix, const float* x, int tokens,
                             size_t x_stride, int tile_begin, int tile_end, float* y,
                             size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int token = 0; token < tokens; ++token) {
    for (int row = tile_begin * kTileRows; row < row_end; ++row) {
      y[size_t(token) * y_stride + size_t(row)] =
          dot_f32(matrix, x + size_t(token) * x_stride, row);
    }
  }
}

void coefficients_row(const CoefficientMatrix& matrix, int row, float* y) {
  const Row values(matrix, row);
  for (int column = 0; column < matrix.columns; ++column) y[column] = values.value(column);
}

}  // namespace pliant
