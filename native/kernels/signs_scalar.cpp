// The definition of the products with planes of signs.
#include <algorithm>
#include <bit>
#include <cmath>

#include "base/half.h"
#include "kernels/paths.h"
#include "kernels/signs.h"

namespace pliant {
namespace {

// One row of the matrix, one value at a time.
class Row {
 public:
  Row(const PlaneMatrix& matrix, int row)
      : matrix_(matrix),
        lane_(size_t(row / kTileRows) * matrix.tile_stride_bytes() + size_t(row % kTileRows) * 4),
        block_(size_t(row / kTileRows) * matrix.tile_stride_scales() +
               size_t(row % kTileRows / kSignSharedRows)) {}

  bool is_positive(int plane, int column) const {
    const size_t chunk = size_t(column / kChunkColumns) * kChunkBytes;
    const uint8_t byte = matrix_.planes[size_t(plane)][lane_ + chunk + size_t(column % 4)];
    return (byte >> (column % kChunkColumns / 4)) & 1;
  }
  uint16_t half(int plane, int group) const {
    return matrix_.scales[block_ + size_t(group * kTileRows + plane * kSignBlocks)];
  }
  float scale(int plane, int group) const { return half_to_float(half(plane, group)); }

  float value(int column) const {
    float sum = 0.0f;
    for (int plane = 0; plane < matrix_.num_planes; ++plane) {
      const float term = scale(plane, column / kGroupColumns);
      sum += is_positive(plane, column) ? term : -term;
    }
    return sum;
  }
  // The codes of a group with the signs of a plane, added up.
  int signed_sum(int plane, int group, const int8_t* codes) const {
    const int end = std::min((group + 1) * kGroupColumns, matrix_.columns);
    int sum = 0;
    for (int column = group * kGroupColumns; column < end; ++column)
      sum += is_positive(plane, column) ? codes[column] : -codes[column];
    return sum;
  }

 private:
  const PlaneMatrix& matrix_;
  size_t lane_;
  size_t block_;
};

float dot_int8(const PlaneMatrix& matrix, const Int8Activations& x, int token, int index) {
  const Row row(matrix, index);
  const float* scales = x.scales + size_t(token) * size_t(x.stride / kGroupColumns);
  const int8_t* codes = x.codes + size_t(token) * size_t(x.stride);
  float y = 0.0f;
  for (int group = 0; group < matrix.groups(); ++group) {
    float term = 0.0f;
    for (int plane = 0; plane < matrix.num_planes; ++plane)
      term = std::fma(float(row.signed_sum(plane, group, codes)), row.scale(plane, group), term);
    y = std::fma(term, scales[group], y);
  }
  return y;
}

void product_int8(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin, int tile_end,
                  float* y, size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int token = 0; token < x.tokens; ++token)
    for (int row = tile_begin * kTileRows; row < row_end; ++row)
      y[size_t(token) * y_stride + size_t(row)] = dot_int8(matrix, x, token, row);
}

void product_f32(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                 int tile_begin, int tile_end, float* y, size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int index = tile_begin * kTileRows; index < row_end; ++index) {
    const Row row(matrix, index);
    for (int token = 0; token < tokens; ++token) {
      const float* values = x + size_t(token) * x_stride;
      float sum = 0.0f;
      for (int column = 0; column < matrix.columns; ++column)
        sum = std::fma(row.value(column), values[column], sum);
      y[size_t(token) * y_stride + size_t(index)] = sum;
    }
  }
}

// value times a finite fp16 number of 0 or more, in units of 2^-24. With 3 x = x + 2 x, the bits
// where 3 x and x differ are the digits of the non-adjacent form of x, which has the fewest; those
// set in 3 x count 1, those set in x count -1, each one place further down.
int64_t shifted(int64_t value, uint16_t half) {
  const int exponent = half >> 10;
  const uint32_t digits = (half & 0x3ffu) | (exponent > 0 ? 0x400u : 0u);
  const uint32_t thrice = digits + (digits << 1);
  const int shift = std::max(exponent, 1) - 1;
  int64_t sum = 0;
  for (uint32_t rest = (thrice & ~digits) >> 1; rest != 0; rest &= rest - 1)
    sum += value << (shift + std::countr_zero(rest));
  for (uint32_t rest = (digits & ~thrice) >> 1; rest != 0; rest &= rest - 1)
    sum -= value << (shift + std::countr_zero(rest));
  return sum;
}

}  // namespace

const SignKernels kSignsScalar = {product_int8, product_f32};

const SignKernels& sign_kernels(const Kernels& kernels) {
  if (&kernels == &kScalarKernels) return kSignsScalar;
#if defined(__x86_64__)
  return kSignsAvx2;
#elif defined(__aarch64__)
  return kSignsAsimd;
#else
  return kSignsScalar;
#endif
}

void signs_row(const PlaneMatrix& matrix, int row, float* y) {
  const Row values(matrix, row);
  for (int column = 0; column < matrix.columns; ++column) y[column] = values.value(column);
}

void shift_add_int8(const PlaneMatrix& matrix, const Int8Activations& x, const int32_t* exponents,
                    float* y, size_t y_stride) {
  const int groups = matrix.groups();
  for (int token = 0; token < x.tokens; ++token) {
    const int8_t* codes = x.codes + size_t(token) * size_t(x.stride);
    const int32_t* powers = exponents + size_t(token) * size_t(x.stride / kGroupColumns);
    for (int index = 0; index < matrix.rows; ++index) {
      const Row row(matrix, index);
      double sum = 0.0;
      for (int group = 0; group < groups; ++group) {
        // 13 bits of codes, 41 of scales, 2 of planes.
        int64_t term = 0;
        for (int plane = 0; plane < matrix.num_planes; ++plane)
          term += shifted(row.signed_sum(plane, group, codes), row.half(plane, group));
        sum += std::ldexp(double(term), powers[group] - 24);
      }
      y[size_t(token) * y_stride + size_t(index)] = float(sum);
    }
  }
}

}  // namespace pliant
