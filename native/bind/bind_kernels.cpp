// The kernels one by one under NumPy arrays, for tests and benchmarks: `_native.kernels`.
//
// Sizes are checked here, since the kernels trust what they are given.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>

#include "base/buffer.h"
#include "base/threads.h"
#include "bind/bindings.h"
#include "kernels/kernels.h"
#include "kernels/measure.h"

namespace nb = nanobind;

namespace pliant {
namespace {

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Result = nb::ndarray<nb::numpy, T>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// A new array that owns its memory, filled with zeros.
template <typename T>
Result<T> zeros(std::initializer_list<size_t> shape) {
  size_t size = 1;
  for (size_t extent : shape) size *= extent;
  T* data = new T[size]();
  const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Result<T>(data, shape, owner);
}

struct Path {
  Isa isa;
  const char* name;
};
constexpr Path kPaths[] = {{Isa::kScalar, "scalar"},
                           {Isa::kAvx2, "avx2"},
                           {Isa::kAvx512Vnni, "avx512"},
                           {Isa::kNeon, "neon"}};

const Kernels& kernels_named(const std::string& name) {
  for (const Path& path : kPaths) {
    if (name != path.name) continue;
    const Kernels* kernels = kernels_for(path.isa);
    if (kernels != nullptr) return *kernels;
  }
  throw std::invalid_argument("no kernel path '" + name + "' here; see paths()");
}

std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const Path& path : kPaths) {
    if (kernels_for(path.isa) != nullptr) names.emplace_back(path.name);
  }
  return names;
}

// [rows, columns] of the planes read, as the kernels see it.
PlaneMatrix view_of(const std::vector<Vector<uint8_t>>& planes, const Vector<uint16_t>& scales,
                    int rows, int columns, int stored_columns) {
  require(!planes.empty() && planes.size() <= size_t(kMaxPlanes), "1 to 8 planes");
  require(rows > 0 && columns > 0 && columns <= stored_columns, "0 < columns <= stored_columns");
  PlaneMatrix view;
  view.num_planes = int(planes.size());
  view.rows = rows;
  view.columns = columns;
  view.stored_columns = stored_columns;
  const size_t tiles = size_t(view.tiles());
  for (size_t plane = 0; plane < planes.size(); ++plane) {
    require(planes[plane].size() >= tiles * view.tile_stride_bytes(), "a plane is too short");
    view.planes[plane] = planes[plane].data();
  }
  require(scales.size() >= tiles * view.tile_stride_scales(), "the scales are too few");
  view.scales = scales.data();
  return view;
}

auto quantize(const std::string& isa, const Matrix<float>& x) {
  const Kernels& kernels = kernels_named(isa);
  const size_t tokens = x.shape(0), columns = x.shape(1);
  const size_t groups = size_t(ceil_div(int(columns), kGroupColumns));
  const size_t stride = groups * kGroupColumns;
  auto codes = zeros<int8_t>({tokens, stride});
  auto scales = zeros<float>({tokens, groups});
  auto sums = zeros<int32_t>({tokens, groups});
  for (size_t token = 0; token < tokens; ++token) {
    kernels.quantize(x.data() + token * columns, int(columns), int(stride),
                     codes.data() + token * stride, scales.data() + token * groups,
                     sums.data() + token * groups);
  }
  return std::make_tuple(codes, scales, sums);
}

// Splits the tiles of a product over a pool; `multiply(begin, end)` does a share.
template <typename Multiply>
void for_shares(const PlaneMatrix& view, int threads, const Multiply& multiply) {
  const nb::gil_scoped_release release;
  ThreadPool pool(threads);
  pool.run([&](int worker, int workers) {
    const Share share = share_of(view.tiles(), worker, workers);
    multiply(share.begin, share.end);
  });
}

auto planes_int8(const std::string& isa, const std::vector<Vector<uint8_t>>& planes,
                 const Vector<uint16_t>& scales, int rows, int columns, int stored_columns,
                 const Matrix<float>& x, int threads) {
  const Kernels& kernels = kernels_named(isa);
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  require(x.shape(1) == size_t(columns), "x must be [tokens, columns]");
  const size_t tokens = x.shape(0);
  const int stride = ceil_div(columns, kGroupColumns) * kGroupColumns;
  const size_t groups = size_t(stride / kGroupColumns);
  AlignedBuffer<int8_t> codes(tokens * size_t(stride));
  AlignedBuffer<float> token_scales(tokens * groups);
  AlignedBuffer<int32_t> sums(tokens * groups);
  for (size_t token = 0; token < tokens; ++token) {
    kernels.quantize(x.data() + token * size_t(columns), columns, stride,
                     codes.data() + token * size_t(stride), token_scales.data() + token * groups,
                     sums.data() + token * groups);
  }
  const Int8Activations activations{codes.data(), token_scales.data(), sums.data(), int(tokens),
                                    stride};
  auto y = zeros<float>({tokens, size_t(rows)});
  float* out = y.data();
  for_shares(view, threads, [&](int begin, int end) {
    AlignedBuffer<uint8_t> scratch(kernels.planes_int8_scratch(view, int(tokens)));
    kernels.planes_int8(view, activations, begin, end, out, size_t(rows), scratch.data());
  });
  return y;
}

auto planes_f32(const std::string& isa, const std::vector<Vector<uint8_t>>& planes,
                const Vector<uint16_t>& scales, int rows, int columns, int stored_columns,
                const Matrix<float>& x, int threads) {
  const Kernels& kernels = kernels_named(isa);
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  require(x.shape(1) == size_t(columns), "x must be [tokens, columns]");
  auto y = zeros<float>({x.shape(0), size_t(rows)});
  float* out = y.data();
  for_shares(view, threads, [&](int begin, int end) {
    kernels.planes_f32(view, x.data(), int(x.shape(0)), size_t(columns), begin, end, out,
                       size_t(rows));
  });
  return y;
}

auto decode_row(const std::string& isa, const std::vector<Vector<uint8_t>>& planes,
                const Vector<uint16_t>& scales, int rows, int columns, int stored_columns,
                int row) {
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  require(0 <= row && row < rows, "row must be below rows");
  auto y = zeros<float>({size_t(columns)});
  kernels_named(isa).decode_row(view, row, y.data());
  return y;
}

auto rms_norm(const std::string& isa, const Vector<float>& x, const Vector<float>& weight,
              float offset, float epsilon) {
  require(x.size() == weight.size(), "x and weight must have one size");
  auto y = zeros<float>({x.size()});
  kernels_named(isa).rms_norm(x.data(), weight.data(), offset, epsilon, int(x.size()), y.data());
  return y;
}

auto rotate(const std::string& isa, const Vector<float>& head, const Vector<float>& cosine,
            const Vector<float>& sine) {
  require(head.size() % 2 == 0 && cosine.size() == head.size() / 2 && sine.size() == cosine.size(),
          "cosine and sine must have half the size of head");
  auto y = zeros<float>({head.size()});
  std::copy_n(head.data(), head.size(), y.data());
  kernels_named(isa).rotate(y.data(), cosine.data(), sine.data(), int(head.size()));
  return y;
}

auto gated(const std::string& isa, int activation, const Vector<float>& gate,
           const Vector<float>& up) {
  require(0 <= activation && activation <= 2, "activation must be 0, 1 or 2");
  require(gate.size() == up.size(), "gate and up must have one size");
  auto y = zeros<float>({gate.size()});
  kernels_named(isa).gated(Activation(activation), gate.data(), up.data(), int(gate.size()),
                           y.data());
  return y;
}

auto store_half(const std::string& isa, const Vector<float>& x) {
  auto y = zeros<uint16_t>({x.size()});
  kernels_named(isa).store(x.data(), int(x.size()), CacheType::kFloat16, y.data());
  return y;
}

// keys and values are [capacity, head_dim], stored as fp16 or fp32 first.
auto attend(const std::string& isa, const Vector<float>& query, const Matrix<float>& keys,
            const Matrix<float>& values, bool half, int begin, float scale, float softcap,
            std::optional<Vector<float>> log_weights, std::optional<Vector<uint8_t>> visible) {
  const Kernels& kernels = kernels_named(isa);
  const size_t entries = keys.shape(0), head_dim = query.size();
  require(keys.shape(1) == head_dim && values.shape(1) == head_dim && values.shape(0) == entries,
          "keys and values must be [entries, head_dim]");
  require(0 <= begin && size_t(begin) < entries, "begin must be below the number of entries");
  require(!log_weights || log_weights->size() == entries, "one log weight for each entry");
  require(!visible || visible->size() == entries - size_t(begin), "one flag for each entry");
  const CacheType type = half ? CacheType::kFloat16 : CacheType::kFloat32;
  AlignedBuffer<float> stored_keys(entries * head_dim), stored_values(entries * head_dim);
  kernels.store(keys.data(), int(entries * head_dim), type, stored_keys.data());
  kernels.store(values.data(), int(entries * head_dim), type, stored_values.data());
  auto y = zeros<float>({head_dim});
  AttentionCall call;
  call.query = query.data();
  call.keys = stored_keys.data();
  call.values = stored_values.data();
  call.type = type;
  call.log_weights = log_weights ? log_weights->data() : nullptr;
  call.visible = visible ? visible->data() : nullptr;
  call.begin = begin;
  call.end = int(entries);
  call.head_dim = int(head_dim);
  call.scale = scale;
  call.softcap = softcap;
  call.output = y.data();
  kernels.attend(call);
  return y;
}

}  // namespace

void bind_kernels(nb::module_& parent) {
  using namespace nb::literals;
  nb::module_ m = parent.def_submodule("kernels", "Kernel paths one by one, for tests.");
  m.def("paths", &paths, "Names of the kernel paths of this build on this CPU.");
  m.def(
      "best", [] { return std::string(best_kernels().isa); },
      "The path in use: the fastest, or what PLIANT_ISA asks for.");
  m.def("default_threads", &default_threads, "Threads worth using: physical cores allowed.");
  m.def("quantize", &quantize, "isa"_a, "x"_a, "x[T, K] -> int8 codes, scales, sums of groups.");
  m.def("planes_int8", &planes_int8, "isa"_a, "planes"_a, "scales"_a, "rows"_a, "columns"_a,
        "stored_columns"_a, "x"_a, "threads"_a = 1, "Quantizes x[T, K] and returns y[T, rows].");
  m.def("planes_f32", &planes_f32, "isa"_a, "planes"_a, "scales"_a, "rows"_a, "columns"_a,
        "stored_columns"_a, "x"_a, "threads"_a = 1, "x[T, K] in fp32 -> y[T, rows].");
  m.def("decode_row", &decode_row, "isa"_a, "planes"_a, "scales"_a, "rows"_a, "columns"_a,
        "stored_columns"_a, "row"_a, "One row in fp32.");
  m.def("rms_norm", &rms_norm, "isa"_a, "x"_a, "weight"_a, "offset"_a, "epsilon"_a);
  m.def("rotate", &rotate, "isa"_a, "head"_a, "cosine"_a, "sine"_a);
  m.def("gated", &gated, "isa"_a, "activation"_a, "gate"_a, "up"_a);
  m.def("store_half", &store_half, "isa"_a, "x"_a, "fp32 -> fp16 bits, nearest even.");
  m.def("attend", &attend, "isa"_a, "query"_a, "keys"_a, "values"_a, "half"_a, "begin"_a = 0,
        "scale"_a = 1.0f, "softcap"_a = 0.0f, "log_weights"_a = nb::none(),
        "visible"_a = nb::none());
  m.def("measure_product", &measure_product, "isa"_a, "num_planes"_a, "rows"_a, "columns"_a,
        "tokens"_a, "threads"_a, "num_matrices"_a, "rounds"_a,
        nb::call_guard<nb::gil_scoped_release>(),
        "Seconds per product in each round, over matrices visited in turn.");
  m.def("measure_read", &measure_read, "num_bytes"_a, "threads"_a, "rounds"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Seconds to read num_bytes in each round.");
  m.def("measure_walk", &measure_walk, "step_bytes"_a, "streams"_a, "prefetch_bytes"_a,
        "num_bytes"_a, "threads"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Seconds to read memory in each round in the order of a layout.");
  m.def("measure_dot_peak", &measure_dot_peak, "isa"_a, "threads"_a, "rounds"_a,
        nb::call_guard<nb::gil_scoped_release>(),
        "Multiplications and additions per second of the path's dot-product instruction.");
}

}  // namespace pliant
