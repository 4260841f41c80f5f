// Low-rank updates as Python objects, and their kernels on every path for tests.
#include <nanobind/stl/string.h>

#include <algorithm>
#include <vector>

#include "bind/bindings.h"
#include "bind/bound_low_rank.h"
#include "ops/reduction.h"

namespace pliant {

BoundLowRank::BoundLowRank(Vector<int8_t> a, Vector<float> a_scales, Vector<int8_t> b,
                           Vector<uint16_t> b_scales, int rank, int rows, int columns)
    : a_(std::move(a)),
      b_(std::move(b)),
      a_scales_(std::move(a_scales)),
      b_scales_(std::move(b_scales)) {
  require(rank > 0 && rows > 0 && columns > 0, "rank, rows and columns must be above 0");
  view_.rank = rank, view_.rows = rows, view_.columns = columns;
  const size_t padded = size_t(view_.padded_rank());
  require(a_.size() == padded * size_t(view_.stride()), "a must be [blocks, stride / 2, 8, 2]");
  require(a_scales_.size() == padded * size_t(view_.groups()),
          "a_scales must be [blocks, groups, 8]");
  require(b_.size() == size_t(rank) * size_t(view_.tiles()) * kTileRows,
          "b must be [tiles, rank, 32]");
  require(b_scales_.size() == size_t(view_.tiles()) * kTileRows, "b_scales must be [tiles, 32]");
  view_.a = a_.data(), view_.b = b_.data();
  view_.a_scales = a_scales_.data(), view_.b_scales = b_scales_.data();
}

namespace {

// y[T, rows] + B (A x); x is rounded to int8 first unless `exact`.
auto low_rank(const std::string& isa, const BoundLowRank& update, const Matrix<float>& x,
              const Matrix<float>& y, bool exact, int threads) {
  const Kernels& kernels = kernels_named(isa);
  const LowRank& view = update.view();
  const int tokens = int(x.shape(0));
  require(x.shape(1) == size_t(view.columns), "x must be [tokens, columns]");
  require(y.shape(0) == x.shape(0) && y.shape(1) == size_t(view.rows), "y must be [tokens, rows]");
  const QuantizedRows quantized = quantized_rows(kernels, x, view.columns);
  ProductInput input{exact ? ActivationMode::kFloat32 : ActivationMode::kInt8, tokens,
                     quantized.view(tokens, view.columns), x.data(), size_t(view.columns)};
  auto result = zeros<float>({size_t(tokens), size_t(view.rows)});
  std::copy_n(y.data(), y.size(), result.data());
  const Product product{nullptr, nullptr, result.data(), size_t(view.rows), &view};
  Reduction reduction;
  reduction.reserve(tokens, view.padded_rank(), threads, true);
  reduction.begin({&product, 1}, threads);
  const nb::gil_scoped_release release;
  ThreadPool pool(threads);
  pool.run([&](int worker, int workers) {
    reduction.sum_share(kernels, input, worker);
    reduction.add(kernels, 0, input, share_of(view.tiles(), worker, workers), worker);
  });
  return result;
}

}  // namespace

void bind_low_rank(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<BoundLowRank>(m, "LowRank", "Factors of an update B A of one matrix.")
      .def(nb::init<Vector<int8_t>, Vector<float>, Vector<int8_t>, Vector<uint16_t>, int, int,
                    int>(),
           "a"_a.noconvert(), "a_scales"_a.noconvert(), "b"_a.noconvert(), "b_scales"_a.noconvert(),
           "rank"_a, "rows"_a, "columns"_a)
      .def_prop_ro("rank", [](const BoundLowRank& update) { return update.view().rank; });
  auto kernels = nb::cast<nb::module_>(m.attr("kernels"));
  kernels.def("low_rank", &low_rank, "isa"_a, "update"_a, "x"_a, "y"_a, "exact"_a = false,
              "threads"_a = 1, "y[T, rows] + B (A x) of x[T, columns], as a path computes it.");
}

}  // namespace pliant
