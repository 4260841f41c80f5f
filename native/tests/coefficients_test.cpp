// Products with planes that have a coefficient each, against the scalar definition.
#include <limits>

#include "checks.h"

namespace pliant {
namespace {

// Random bits and coefficients, those beyond the columns and rows too.
struct RandomCoefficients {
  RandomMatrix bits;
  std::vector<std::vector<uint16_t>> numbers;  // of each plane, then the offsets
  CoefficientMatrix view;

  RandomCoefficients(int num_planes, int rows, int columns, int stored_columns)
      : bits(num_planes, rows, columns, stored_columns) {
    static_cast<TiledShape&>(view) = bits.view;
    view.num_planes = num_planes;
    view.planes = bits.view.planes;
    for (int plane = 0; plane <= num_planes; ++plane) {
      const size_t size = size_t(view.tiles()) * view.tile_stride_scales();
      std::vector<uint16_t>& halves = numbers.emplace_back();
      for (float value : normals(size, 0.02f)) halves.push_back(float_to_half(value));
      halves = exact(halves);
    }
    for (int plane = 0; plane < num_planes; ++plane) {
      view.coefficients[size_t(plane)] = numbers[size_t(plane)].data();
    }
    view.offsets = numbers.back().data();
  }
};

std::vector<float> product(const Kernels& kernels, const CoefficientMatrix& matrix,
                           const Int8Activations& x) {
  const size_t y_stride = size_t(matrix.rows) + 3;
  std::vector<float> y(size_t(x.tokens) * y_stride, -7.0f);
  const int middle = matrix.tiles() / 2;
  kernels.coefficients_int8(matrix, x, 0, middle, y.data(), y_stride);
  kernels.coefficients_int8(matrix, x, middle, matrix.tiles(), y.data(), y_stride);
  return y;
}

void check_int8(const Kernels& scalar, const Kernels& path, const RandomCoefficients& matrix,
                const std::vector<float>& x, int tokens) {
  const QuantizedTokens quantized(scalar, x, tokens, matrix.view.columns);
  expect(same_bits(product(scalar, matrix.view, quantized.view),
                   product(path, matrix.view, quantized.view)),
         std::string(path.isa) + " coefficients_int8 " + std::to_string(matrix.view.num_planes) +
             " planes, " + std::to_string(matrix.view.rows) + " x " +
             std::to_string(matrix.view.columns) + ", " + std::to_string(tokens) + " tokens");
}

void check_f32(const Kernels& scalar, const Kernels& path, const RandomCoefficients& matrix) {
  const size_t rows = size_t(matrix.view.rows), columns = size_t(matrix.view.columns);
  const auto x = exact(normals(3 * columns, 1.0f));
  std::vector<float> a(3 * rows), b(a), row_a(columns), row_b(columns);
  scalar.coefficients_f32(matrix.view, x.data(), 3, columns, 0, matrix.view.tiles(), a.data(),
                          rows);
  path.coefficients_f32(matrix.view, x.data(), 3, columns, 0, matrix.view.tiles(), b.data(), rows);
  // Both take the same operations in the same order.
  expect(same_bits(a, b), std::string(path.isa) + " coefficients_f32");
  scalar.coefficients_row(matrix.view, matrix.view.rows - 1, row_a.data());
  path.coefficients_row(matrix.view, matrix.view.rows - 1, row_b.data());
  expect(same_bits(row_a, row_b), std::string(path.isa) + " coefficients_row");
}

}  // namespace

void check_coefficients(const Kernels& scalar, const Kernels& path) {
  const int shapes[][3] = {{1, 8, 8},    {1, 32, 32},   {5, 40, 72},     {32, 64, 64},
                           {33, 96, 96}, {48, 97, 260}, {129, 200, 333}, {31, 1025, 1100}};
  for (const auto& [rows, columns, stored_columns] : shapes) {
    for (int planes : {1, 2, 3, 5, 8}) {
      const RandomCoefficients matrix(planes, rows, columns, stored_columns);
      check_f32(scalar, path, matrix);
      for (int tokens : {1, 2, 3, 4, 7, 13}) {
        const auto x = exact(normals(size_t(tokens) * size_t(columns), 1.0f));
        check_int8(scalar, path, matrix, x, tokens);
      }
    }
  }
  // The largest sums and the numbers a file may hold that no working model has.
  RandomCoefficients matrix(3, 40, 160, 160);
  for (auto& plane : matrix.bits.planes) std::fill(plane.begin(), plane.end(), uint8_t(0xff));
  matrix.numbers[0][3] = 0x7c00, matrix.numbers[1][4] = 0x7e00, matrix.numbers[2][5] = 0x0001;
  std::vector<float> x(5 * 160, 1.0f);
  for (size_t i = 0; i < 160; ++i) x[i] = -1.0f;
  x[200] = NAN, x[400] = std::numeric_limits<float>::infinity();
  check_int8(scalar, path, matrix, exact(x), 5);
}

}  // namespace pliant
