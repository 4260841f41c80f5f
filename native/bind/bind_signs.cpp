// Products with planes of signs, under NumPy arrays: part of `_native.kernels`.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"
#include "kernels/signs.h"

namespace pliant {
namespace {

using Planes = std::vector<Vector<uint8_t>>;

PlaneMatrix view_of(const std::vector<Vector<uint8_t>>& planes, const Vector<uint16_t>& scales,
                    int rows, int columns, int stored_columns) {
  return plane_matrix(planes, scales, rows, columns, stored_columns, kSignPlanes);
}

auto signs_int8(const std::string& isa, const Planes& planes, const Vector<uint16_t>& scales,
                int rows, int columns, int stored_columns, const Matrix<float>& x, int threads) {
  const Kernels& kernels = kernels_named(isa);
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  const QuantizedRows quantized = quantized_rows(kernels, x, columns);
  const int tokens = int(x.shape(0));
  auto y = zeros<float>({size_t(tokens), size_t(rows)});
  float* out = y.data();
  for_shares(view, threads, [&](int begin, int end) {
    sign_kernels(kernels).product_int8(view, quantized.view(tokens, columns), begin, end, out,
                                       size_t(rows));
  });
  return y;
}

auto signs_f32(const std::string& isa, const Planes& planes, const Vector<uint16_t>& scales,
               int rows, int columns, int stored_columns, const Matrix<float>& x, int threads) {
  const Kernels& kernels = kernels_named(isa);
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  require(x.shape(1) == size_t(columns), "x must be [tokens, columns]");
  auto y = zeros<float>({x.shape(0), size_t(rows)});
  float* out = y.data();
  for_shares(view, threads, [&](int begin, int end) {
    sign_kernels(kernels).product_f32(view, x.data(), int(x.shape(0)), size_t(columns), begin, end,
                                      out, size_t(rows));
  });
  return y;
}

auto one_row(const Planes& planes, const Vector<uint16_t>& scales, int rows, int columns,
             int stored_columns, int row) {
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  require(0 <= row && row < rows, "row must be below rows");
  auto y = zeros<float>({size_t(columns)});
  signs_row(view, row, y.data());
  return y;
}

auto shift_add(const Planes& planes, const Vector<uint16_t>& scales, int rows, int columns,
               int stored_columns, const Matrix<int8_t>& codes, const Matrix<int32_t>& exponents) {
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  const size_t tokens = codes.shape(0), groups = size_t(view.groups());
  require(codes.shape(1) == groups * kGroupColumns, "codes must be [tokens, groups * 64]");
  require(exponents.shape(0) == tokens && exponents.shape(1) == groups,
          "exponents must be [tokens, groups]");
  const int32_t* powers = exponents.data();
  require(std::all_of(powers, powers + tokens * groups,
                      [](int32_t power) { return -1000 <= power && power <= 1000; }),
          "exponents from -1000 to 1000");
  const size_t num_scales = size_t(view.tiles()) * view.tile_stride_scales();
  require(std::all_of(scales.data(), scales.data() + num_scales,
                      [](uint16_t half) { return half < 0x7c00; }),
          "scales that are finite and not negative");
  auto y = zeros<float>({tokens, size_t(rows)});
  const Int8Activations x{codes.data(), nullptr, nullptr, int(tokens), int(codes.shape(1))};
  shift_add_int8(view, x, powers, y.data(), size_t(rows));
  return y;
}

}  // namespace

void bind_signs(nb::module_& m) {
  using namespace nb::literals;
  m.def("signs_int8", &signs_int8, "isa"_a, "planes"_a, "scales"_a, "rows"_a, "columns"_a,
        "stored_columns"_a, "x"_a, "threads"_a = 1, "Quantizes x[T, K] and returns y[T, rows].");
  m.def("signs_f32", &signs_f32, "isa"_a, "planes"_a, "scales"_a, "rows"_a, "columns"_a,
        "stored_columns"_a, "x"_a, "threads"_a = 1, "x[T, K] in fp32 -> y[T, rows].");
  m.def("signs_row", &one_row, "planes"_a, "scales"_a, "rows"_a, "columns"_a, "stored_columns"_a,
        "row"_a, "One row in fp32.");
  m.def("shift_add", &shift_add, "planes"_a, "scales"_a, "rows"_a, "columns"_a, "stored_columns"_a,
        "codes"_a, "exponents"_a, "codes[T, K] * 2^exponents[T, groups] -> y[T, rows].");
}

}  // namespace pliant
