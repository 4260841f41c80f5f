// Products with ternary weights, against the scalar definition.
#include <algorithm>

#include "checks.h"

namespace pliant {
namespace {

// Any byte is five digits, so that random ones are random weights.
struct RandomTernary {
  std::vector<uint8_t> bytes;
  std::vector<uint16_t> scales;
  TernaryMatrix view;

  RandomTernary(int rows, int columns, int stored_columns) {
    view.rows = rows;
    view.columns = columns;
    view.stored_columns = stored_columns;
    bytes.resize(size_t(view.tiles()) * view.tile_stride_ternary());
    for (uint8_t& byte : bytes) byte = uint8_t(random_bits());
    scales.resize(size_t(view.tiles()) * view.tile_stride_scales());
    for (uint16_t& half : scales) half = float_to_half(float(random_bits() % 1000) * 1e-5f);
    view.bytes = bytes.data();
    view.scales = scales.data();
  }
};

std::vector<float> product(const Kernels& kernels, const TernaryMatrix& matrix,
                           const Int8Activations& x) {
  const size_t y_stride = size_t(matrix.rows) + 3;
  std::vector<float> y(size_t(x.tokens) * y_stride, -7.0f);
  const int middle = matrix.tiles() / 2;
  kernels.ternary_int8(matrix, x, 0, middle, y.data(), y_stride);
  kernels.ternary_int8(matrix, x, middle, matrix.tiles(), y.data(), y_stride);
  return y;
}

}  // namespace

void check_ternary(const Kernels& scalar, const Kernels& path) {
  // One row, one column, whole spans of 320, spans cut at each digit, short last spans.
  const int shapes[][3] = {{1, 1, 1},      {1, 32, 32},     {5, 40, 72},      {33, 64, 64},
                           {32, 320, 320}, {48, 288, 288},  {70, 256, 640},   {31, 321, 400},
                           {65, 897, 897}, {40, 896, 1280}, {33, 1024, 2048}, {32, 19, 979}};
  for (const auto& [rows, columns, stored_columns] : shapes) {
    RandomTernary matrix(rows, columns, stored_columns);
    for (int value : {-1, 0, 255}) {  // random, all digits 0, all digits 2
      if (value >= 0) std::fill(matrix.bytes.begin(), matrix.bytes.end(), uint8_t(value));
      for (int tokens : {1, 3}) {
        auto x = normals(size_t(tokens) * size_t(columns), 1.0f);
        if (value >= 0) std::fill(x.begin(), x.end(), value == 0 ? -1.0f : 1.0f);
        const QuantizedTokens quantized(scalar, exact(x), tokens, columns);
        expect(same_bits(product(scalar, matrix.view, quantized.view),
                         product(path, matrix.view, quantized.view)),
               std::string(path.isa) + " ternary_int8 " + std::to_string(rows) + " x " +
                   std::to_string(columns) + " of " + std::to_string(stored_columns));
      }
    }
  }
}

}  // namespace pliant
