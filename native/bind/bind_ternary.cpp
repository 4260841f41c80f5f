// Products with ternary weights under NumPy arrays: part of `_native.kernels`.
#include <nanobind/stl/string.h>

#include "bind/arrays.h"
#include "bind/bindings.h"

namespace pliant {
namespace {

auto ternary_int8(const std::string& isa, const Vector<uint8_t>& digits,
                  const Vector<uint16_t>& scales, int rows, int columns, int stored_columns,
                  const Matrix<float>& x, int threads) {
  const Kernels& kernels = kernels_named(isa);
  require(rows > 0 && columns > 0 && columns <= stored_columns, "0 < columns <= stored_columns");
  TernaryMatrix view;
  view.rows = rows;
  view.columns = columns;
  view.stored_columns = stored_columns;
  const size_t tiles = size_t(view.tiles());
  require(digits.size() >= tiles * view.tile_stride_ternary(), "the digits are too few");
  require(scales.size() >= tiles * view.tile_stride_scales(), "the scales are too few");
  view.bytes = digits.data();
  view.scales = scales.data();
  const QuantizedRows quantized = quantized_rows(kernels, x, columns);
  const int tokens = int(x.shape(0));
  auto y = zeros<float>({size_t(tokens), size_t(rows)});
  float* out = y.data();
  for_shares(view, threads, [&](int begin, int end) {
    kernels.ternary_int8(view, quantized.view(tokens, columns), begin, end, out, size_t(rows));
  });
  return y;
}

}  // namespace

void bind_ternary(nb::module_& m) {
  using namespace nb::literals;
  m.def("ternary_int8", &ternary_int8, "isa"_a, "digits"_a, "scales"_a, "rows"_a, "columns"_a,
        "stored_columns"_a, "x"_a, "threads"_a = 1, "Quantizes x[T, K] and returns y[T, rows].");
}

}  // namespace pliant
