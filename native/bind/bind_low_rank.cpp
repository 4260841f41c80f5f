// Low-rank updates as Python objects, and their kernels on every path for tests.
#include <nanobind/stl/string.h>

#include <algorithm>
#include <vector>

#include "bind/bindings.h"
#include "bind/bound_low_rank.h"

namespace pliant {

BoundLowRank::BoundLowRank(Vector<int8_t> a, Vector<float> a_scales, Vector<int8_t> b,
                           Vector<float> b_scales, int rank, int rows, int columns)
    : a_(std::move(a)),
      b_(std::move(b)),
      a_scales_(std::move(a_scales)),
      b_scales_(std::move(b_scales)) {
  require(rank > 0 && rows > 0 && columns > 0, "rank, rows and columns must be above 0");
  view_.rank = rank, view_.rows = rows, view_.columns = columns;
  const size_t wide = size_t(rank);
  require(a_.size() == wide * size_t(view_.stride()), "a must be [rank, stride]");
  require(a_scales_.size() == wide * size_t(view_.groups()), "a_scales must be [rank, groups]");
  require(b_.size() == wide * size_t(view_.tiles()) * kTileRows, "b must be [tiles, rank, 32]");
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
  std::vector<float> reduced(size_t(tokens) * size_t(view.rank));
  auto result = zeros<float>({size_t(tokens), size_t(view.rows)});
  std::copy_n(y.data(), y.size(), result.data());
  Product product;
  product.low_rank = &view;
  product.reduced = reduced.data();
  product.reduced_stride = size_t(view.rank);
  float* out = result.data();
  const nb::gil_scoped_release release;
  ThreadPool pool(threads);
  pool.run([&](int worker, int workers) {
    reduce_share(kernels, {&product, 1}, input, worker, workers);
  });
  pool.run([&](int worker, int workers) {
    const Share tiles = share_of(view.tiles(), worker, workers);
    kernels.low_rank->add(view, reduced.data(), tokens, size_t(view.rank), tiles.begin, tiles.end,
                          out, size_t(view.rows));
  });
  return result;
}

}  // namespace

void bind_low_rank(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<BoundLowRank>(m, "LowRank", "Factors of an update B A of one matrix.")
      .def(nb::init<Vector<int8_t>, Vector<float>, Vector<int8_t>, Vector<float>, int, int, int>(),
           "a"_a.noconvert(), "a_scales"_a.noconvert(), "b"_a.noconvert(), "b_scales"_a.noconvert(),
           "rank"_a, "rows"_a, "columns"_a)
      .def_prop_ro("rank", [](const BoundLowRank& update) { return update.view().rank; });
  auto kernels = nb::cast<nb::module_>(m.attr("kernels"));
  kernels.def("low_rank", &low_rank, "isa"_a, "update"_a, "x"_a, "y"_a, "exact"_a = false,
              "threads"_a = 1, "y[T, rows] + B (A x) of x[T, columns], as a path computes it.");
}

}  // namespace pliant
