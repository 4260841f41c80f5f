#include "ops/product.h"

#include <algorithm>

namespace pliant {

void QuantizedRows::reserve(int tokens, int columns) {
  const size_t groups = size_t(tokens) * ceil_div(columns, kGroupColumns);
  codes_.reserve(groups * kGroupColumns);
  scales_.reserve(groups);
  sums_.reserve(groups);
}

void QuantizedRows::quantize(const Kernels& kernels, const float* x, int token, int columns,
                             Share part) {
  const int size = part.end - part.begin;
  const size_t first =
      size_t(token) * ceil_div(columns, kGroupColumns) + part.begin / kGroupColumns;
  const int stride = ceil_div(size, kGroupColumns) * kGroupColumns;
  kernels.quantize(x, size, stride, codes_.data() + first * kGroupColumns, scales_.data() + first,
                   sums_.data() + first);
}

void QuantizedRows::norm(const Kernels& kernels, const float* x, const float* weight, float offset,
                         float epsilon, int token, int columns) {
  const int groups = ceil_div(columns, kGroupColumns);
  const size_t first = size_t(token) * groups;
  kernels.norm_quantize(x, weight, offset, epsilon, columns, groups * kGroupColumns,
                        codes_.data() + first * kGroupColumns, scales_.data() + first,
                        sums_.data() + first);
}

Int8Activations QuantizedRows::view(int tokens, int columns) const {
  return {codes_.data(), scales_.data(), sums_.data(), tokens,
          ceil_div(columns, kGroupColumns) * kGroupColumns};
}

namespace {

void multiply_signs(const SignKernels& kernels, const Product& product, const ProductInput& input,
                    Share tiles) {
  if (input.mode == ActivationMode::kInt8) {
    kernels.product_int8(*product.matrix, input.quantized, tiles.begin, tiles.end, product.output,
                         product.stride);
  } else {
    kernels.product_f32(*product.matrix, input.values, input.tokens, input.stride, tiles.begin,
                        tiles.end, product.output, product.stride);
  }
}

}  // namespace

void read_row(const Kernels& kernels, const CodedMatrix& matrix, int row, float* y) {
  if (matrix.form == PlaneForm::kSigns) {
    signs_row(matrix, row, y);
  } else {
    kernels.decode_row(matrix, row, y);
  }
}

void multiply(const Kernels& kernels, const Product& product, const ProductInput& input,
              Share tiles, void* scratch) {
  if (tiles.begin >= tiles.end) return;
  const CodedMatrix& matrix = *product.matrix;
  if (matrix.form == PlaneForm::kSigns) {
    multiply_signs(sign_kernels(kernels), product, input, tiles);
  } else if (input.mode == ActivationMode::kInt8) {
    kernels.planes_int8(matrix, input.quantized, tiles.begin, tiles.end, product.output,
                        product.stride, scratch);
  } else {
    kernels.planes_f32(matrix, input.values, input.tokens, input.stride, tiles.begin, tiles.end,
                       product.output, product.stride);
  }
  if (product.bias != nullptr) {
    const int first = tiles.begin * kTileRows;
    const int size = std::min(tiles.end * kTileRows, matrix.rows) - first;
    for (int token = 0; token < input.tokens; ++token)
      kernels.add(product.bias + first, size, product.output + token * product.stride + first);
  }
}

}  // namespace pliant
