// Products with planes that have a coefficient each, under NumPy arrays: part of `_native.kernels`.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "bind/arrays.h"
#include "bind/bindings.h"

namespace pliant {
namespace {

using Planes = std::vector<Vector<uint8_t>>;
using Numbers = std::vector<Vector<uint16_t>>;

CoefficientMatrix view_of(const Planes& planes, const Numbers& coefficients,
                          const Vector<uint16_t>& offsets, int rows, int columns,
                          int stored_columns) {
  require(!planes.empty() && planes.size() <= size_t(kMaxPlanes), "1 to 8 planes");
  require(planes.size() == coefficients.size(), "as many coefficients as planes");
  require(rows > 0 && columns > 0 && columns <= stored_columns, "0 < columns <= stored_columns");
  CoefficientMatrix view;
  view.num_planes = int(planes.size());
  view.rows = rows;
  view.columns = columns;
  view.stored_columns = stored_columns;
  const size_t num_bytes = size_t(view.tiles()) * view.tile_stride_bytes();
  const size_t num_scales = size_t(view.tiles()) * view.tile_stride_scales();
  for (size_t plane = 0; plane < planes.size(); ++plane) {
    require(planes[plane].size() >= num_bytes, "a plane is too short");
    require(coefficients[plane].size() >= num_scales, "the coefficients are too few");
    view.planes[plane] = planes[plane].data();
    view.coefficients[plane] = coefficients[plane].data();
  }
  require(offsets.size() >= num_scales, "the offsets are too few");
  view.offsets = offsets.data();
  return view;
}

auto coefficients_int8(const std::string& isa, const Planes& planes, const Numbers& coefficients,
                       const Vector<uint16_t>& offsets, int rows, int columns, int stored_columns,
                       const Matrix<float>& x, int threads) {
  const Kernels& kernels = kernels_named(isa);
  const auto view = view_of(planes, coefficients, offsets, rows, columns, stored_columns);
  const QuantizedRows quantized = quantized_rows(kernels, x, columns);
  const int tokens = int(x.shape(0));
  auto y = zeros<float>({size_t(tokens), size_t(rows)});
  float* out = y.data();
  for_shares(view, threads, [&](int begin, int end) {
    kernels.coefficients_int8(view, quantized.view(tokens, columns), begin, end, out, size_t(rows));
  });
  return y;
}

auto coefficients_f32(const std::string& isa, const Planes& planes, const Numbers& coefficients,
                      const Vector<uint16_t>& offsets, int rows, int columns, int stored_columns,
                      const Matrix<float>& x, int threads) {
  const Kernels& kernels = kernels_named(isa);
  const auto view = view_of(planes, coefficients, offsets, rows, columns, stored_columns);
  require(x.shape(1) == size_t(columns), "x must be [tokens, columns]");
  auto y = zeros<float>({x.shape(0), size_t(rows)});
  float* out = y.data();
  for_shares(view, threads, [&](int begin, int end) {
    kernels.coefficients_f32(view, x.data(), int(x.shape(0)), size_t(columns), begin, end, out,
                             size_t(rows));
  });
  return y;
}

auto coefficients_row(const std::string& isa, const Planes& planes, const Numbers& coefficients,
                      const Vector<uint16_t>& offsets, int rows, int columns, int stored_columns,
                      int row) {
  const auto view = view_of(planes, coefficients, offsets, rows, columns, stored_columns);
  require(0 <= row && row < rows, "row must be below rows");
  auto y = zeros<float>({size_t(columns)});
  kernels_named(isa).coefficients_row(view, row, y.data());
  return y;
}

}  // namespace

void bind_coefficients(nb::module_& m) {
  using namespace nb::literals;
  m.def("coefficients_int8", &coefficients_int8, "isa"_a, "planes"_a, "coefficients"_a, "offsets"_a,
        "rows"_a, "columns"_a, "stored_columns"_a, "x"_a, "threads"_a = 1,
        "Quantizes x[T, K] and returns y[T, rows].");
  m.def("coefficients_f32", &coefficients_f32, "isa"_a, "planes"_a, "coefficients"_a, "offsets"_a,
        "rows"_a, "columns"_a, "stored_columns"_a, "x"_a, "threads"_a = 1,
        "x[T, K] in fp32 -> y[T, rows].");
  m.def("coefficients_row", &coefficients_row, "isa"_a, "planes"_a, "coefficients"_a, "offsets"_a,
        "rows"_a, "columns"_a, "stored_columns"_a, "row"_a, "One row in fp32.");
}

}  // namespace pliant
