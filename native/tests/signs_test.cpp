// Products with planes of signs, against the scalar definition.
#include "kernels/signs.h"

#include <limits>

#include "checks.h"

namespace pliant {
namespace {

std::vector<float> product(const Kernels& kernels, const PlaneMatrix& matrix,
                           const Int8Activations& x) {
  const size_t y_stride = size_t(matrix.rows) + 3;
  std::vector<float> y(size_t(x.tokens) * y_stride, -7.0f);
  const int middle = matrix.tiles() / 2;
  const auto multiply = sign_kernels(kernels).product_int8;
  multiply(matrix, x, 0, middle, y.data(), y_stride);
  multiply(matrix, x, middle, matrix.tiles(), y.data(), y_stride);
  return y;
}

void check_int8(const Kernels& scalar, const Kernels& path, const RandomMatrix& matrix,
                const std::vector<float>& x, int tokens) {
  const QuantizedTokens quantized(scalar, x, tokens, matrix.view.columns);
  expect(same_bits(product(scalar, matrix.view, quantized.view),
                   product(path, matrix.view, quantized.view)),
         std::string(path.isa) + " signs int8 " + std::to_string(matrix.view.num_planes) +
             " planes, " + std::to_string(matrix.view.rows) + " x " +
             std::to_string(matrix.view.columns) + ", " + std::to_string(tokens) + " tokens");
}

void check_f32(const Kernels& scalar, const Kernels& path, const RandomMatrix& matrix) {
  const size_t rows = size_t(matrix.view.rows), columns = size_t(matrix.view.columns);
  const auto x = exact(normals(3 * columns, 1.0f));
  std::vector<float> a(3 * rows), b(a);
  const int tiles = matrix.view.tiles();
  sign_kernels(scalar).product_f32(matrix.view, x.data(), 3, columns, 0, tiles, a.data(), rows);
  sign_kernels(path).product_f32(matrix.view, x.data(), 3, columns, 0, tiles, b.data(), rows);
  // Both take the same operations in the same order.
  expect(same_bits(a, b), std::string(path.isa) + " signs f32");
}

}  // namespace

void check_signs(const Kernels& scalar, const Kernels& path) {
  const int shapes[][3] = {{1, 8, 8},    {1, 32, 32},   {5, 40, 72},     {32, 64, 64},
                           {33, 96, 96}, {48, 97, 260}, {129, 200, 333}, {31, 1025, 1100}};
  for (const auto& [rows, columns, stored_columns] : shapes) {
    for (int planes : {1, 2, 3, 4}) {
      const RandomMatrix matrix(planes, rows, columns, stored_columns);
      check_f32(scalar, path, matrix);
      for (int tokens : {1, 2, 3, 4, 7, 13}) {
        const auto x = exact(normals(size_t(tokens) * size_t(columns), 1.0f));
        check_int8(scalar, path, matrix, x, tokens);
      }
    }
  }
  // The largest sums and the numbers a file may hold that no working model has.
  RandomMatrix matrix(3, 40, 160, 160);
  for (auto& plane : matrix.planes) std::fill(plane.begin(), plane.end(), uint8_t(0xff));
  matrix.scales[3] = 0x7c00, matrix.scales[12] = 0x7e00, matrix.scales[21] = 0x0001;
  std::vector<float> x(5 * 160, 1.0f);
  for (size_t i = 0; i < 160; ++i) x[i] = -1.0f;
  x[200] = NAN, x[400] = std::numeric_limits<float>::infinity();
  check_int8(scalar, path, matrix, exact(x), 5);
}

}  // namespace pliant
