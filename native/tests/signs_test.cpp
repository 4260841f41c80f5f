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
  // A row is the product with ones, one column at a time.
  std::vector<float> row(columns), one(columns), y(rows);
  signs_row(matrix.view, matrix.view.rows - 1, row.data());
  const int tile = tiles - 1, last = int(columns) - 1;
  one[size_t(last)] = 1.0f;
  sign_kernels(path).product_f32(matrix.view, one.data(), 1, columns, tile, tiles, y.data(), rows);
  expect(y.back() == row.back(), std::string(path.isa) + " signs row");
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

void check_shift_add() {
  for (const auto& [rows, columns, stored] : {std::array{1, 8, 8}, {33, 96, 128}, {40, 333, 340}})
    for (int planes : {1, 2, 3, 4}) {
      RandomMatrix matrix(planes, rows, columns, stored);
      // Every finite number of 0 or more that a file may hold.
      for (uint16_t& half : matrix.scales) half = uint16_t(random_bits() % 0x7c00);
      const int groups = matrix.view.groups(), stride = groups * kGroupColumns;
      std::vector<int8_t> codes(2 * size_t(stride));
      for (size_t i = 0; i < codes.size(); ++i)
        codes[i] = int(i) % stride < columns ? int8_t(random_bits() % 255 - 127) : int8_t(0);
      std::vector<int32_t> exponents(2 * size_t(groups));
      for (int32_t& power : exponents) power = int32_t(random_bits() % 41) - 20;
      codes = exact(codes), exponents = exact(exponents);
      std::vector<float> y(2 * size_t(rows));
      const Int8Activations x{codes.data(), nullptr, nullptr, 2, stride};
      shift_add_int8(matrix.view, x, exponents.data(), y.data(), size_t(rows));
      // The same in fp64 by multiplication: each weight and each term of a group is exact in it,
      // sums are rounded to 2^-53, and the result once to fp32.
      const auto weight = [&](int row, int column) {
        const size_t tile = size_t(row / kTileRows), lane = size_t(row % kTileRows);
        const size_t byte = tile * matrix.view.tile_stride_bytes() +
                            size_t(column / kChunkColumns) * kChunkBytes + lane * 4 +
                            size_t(column % 4);
        const size_t first = tile * matrix.view.tile_stride_scales() +
                             size_t(column / kGroupColumns) * kTileRows + lane / kSignSharedRows;
        double sum = 0.0;
        for (size_t plane = 0; plane < size_t(planes); ++plane) {
          const double scale = half_to_float(matrix.scales[first + plane * kSignBlocks]);
          sum += matrix.planes[plane][byte] >> (column % kChunkColumns / 4) & 1 ? scale : -scale;
        }
        return sum;
      };
      for (int token = 0; token < 2; ++token)
        for (int row = 0; row < rows; ++row) {
          double sum = 0.0, size = 0.0;
          for (int column = 0; column < columns; ++column) {
            const double term =
                std::ldexp(weight(row, column) * codes[size_t(token * stride + column)],
                           exponents[size_t(token * groups + column / kGroupColumns)]);
            sum += term, size += std::fabs(term);
          }
          const double found = y[size_t(token * rows + row)];
          expect(std::fabs(found - sum) <= 0x1p-24 * std::fabs(sum) + columns * 0x1p-52 * size,
                 "shift_add");
        }
    }
}

}  // namespace pliant
