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
#include "base/cpus.h"
#include "base/crew.h"
#include "base/threads.h"
#include "bind/arrays.h"
#include "bind/bindings.h"
#include "kernels/cache_codes.h"
#include "kernels/measure.h"
#include "ops/attention.h"

namespace nb = nanobind;

namespace pliant {
namespace {

std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->isa);
  return names;
}

PlaneMatrix view_of(const std::vector<Vector<uint8_t>>& planes, const Vector<uint16_t>& scales,
                    int rows, int columns, int stored_columns) {
  return plane_matrix(planes, scales, rows, columns, stored_columns, kMaxPlanes);
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

auto sum_scales(const std::string& isa, const std::vector<Vector<uint8_t>>& planes,
                const Vector<uint16_t>& scales, int rows, int columns, int stored_columns,
                const Vector<float>& weight) {
  const PlaneMatrix view = view_of(planes, scales, rows, columns, stored_columns);
  require(weight.size() == size_t(view.groups()), "one weight for each group");
  auto y = zeros<float>({size_t(rows)});
  kernels_named(isa).sum_scales(view, weight.data(), 0, view.tiles(), y.data());
  return y;
}

auto rms_norm(const std::string& isa, const Vector<float>& x, const Vector<float>& weight,
              float offset, float epsilon) {
  require(x.size() == weight.size(), "x and weight must have one size");
  auto y = zeros<float>({x.size()});
  kernels_named(isa).rms_norm(x.data(), weight.data(), offset, epsilon, int(x.size()), y.data());
  return y;
}

auto norm_quantize(const std::string& isa, const Vector<float>& x, const Vector<float>& weight,
                   float offset, float epsilon) {
  require(x.size() == weight.size(), "x and weight must have one size");
  const size_t groups = size_t(ceil_div(int(x.size()), kGroupColumns));
  auto codes = zeros<int8_t>({groups * kGroupColumns});
  auto scales = zeros<float>({groups});
  auto sums = zeros<int32_t>({groups});
  kernels_named(isa).norm_quantize(x.data(), weight.data(), offset, epsilon, int(x.size()),
                                   int(groups) * kGroupColumns, codes.data(), scales.data(),
                                   sums.data());
  return std::make_tuple(codes, scales, sums);
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

CacheType cache_type_named(const std::string& name) {
  if (name == "float32") return CacheType::kFloat32;
  if (name == "float16") return CacheType::kFloat16;
  require(name == "int8", "a cache is float32, float16 or int8");
  return CacheType::kInt8;
}

auto store_half(const std::string& isa, const Vector<float>& x) {
  auto y = zeros<uint16_t>({x.size()});
  kernels_named(isa).store(x.data(), int(x.size()), CacheType::kFloat16, y.data(), nullptr);
  return y;
}

auto store_int8(const std::string& isa, const Vector<float>& x) {
  auto y = zeros<int8_t>({x.size()});
  float scale = 0.0f;
  kernels_named(isa).store(x.data(), int(x.size()), CacheType::kInt8, y.data(), &scale);
  return std::make_tuple(y, scale);
}

// Entries [N, head_dim] as a cache of a type holds them.
struct StoredEntries {
  AlignedBuffer<float> rows;  // of any type: no entry is larger than its floats
  std::vector<float> scales;

  StoredEntries(const Kernels& kernels, const Matrix<float>& entries, CacheType type)
      : rows(entries.size()), scales(entries.shape(0)) {
    const size_t head_dim = entries.shape(1);
    const size_t value_bytes = type == CacheType::kFloat32   ? 4
                               : type == CacheType::kFloat16 ? 2
                                                             : 1;
    for (size_t entry = 0; entry < entries.shape(0); ++entry) {
      kernels.store(entries.data() + entry * head_dim, int(head_dim), type,
                    reinterpret_cast<std::byte*>(rows.data()) + entry * head_dim * value_bytes,
                    &scales[entry]);
    }
  }
};

// The same as a coded cache holds them: codes of the first units, a ring of the others.
struct CodedEntries {
  static constexpr int kRingUnits = 3;
  int folded_units = 0;
  std::vector<uint8_t> units;
  std::vector<uint16_t> ring;

  CodedEntries(const StoredEntries& stored, int bits, int head_dim, bool is_key) {
    if (bits == 0) return;
    const uint16_t* rows = reinterpret_cast<const uint16_t*>(stored.rows.data());
    const size_t unit_values = size_t(kCacheUnit) * size_t(head_dim);
    const int entries = int(stored.scales.size());
    folded_units = std::max(0, entries / kCacheUnit - 2);
    units.resize(size_t(folded_units) * coded_unit_bytes(bits, head_dim));
    ring.resize(kRingUnits * unit_values);
    for (int unit = 0; unit < folded_units; ++unit)
      encode_unit(rows + size_t(unit) * unit_values, bits, head_dim, is_key,
                  units.data() + size_t(unit) * coded_unit_bytes(bits, head_dim));
    for (int entry = folded_units * kCacheUnit; entry < entries; ++entry) {
      const int row = entry / kCacheUnit % kRingUnits * kCacheUnit + entry % kCacheUnit;
      std::copy_n(rows + size_t(entry) * size_t(head_dim), head_dim,
                  ring.data() + size_t(row) * size_t(head_dim));
    }
  }
};

// queries are [rows, head_dim], keys and values [entries, head_dim]; stored as `cache` first. Each
// row sees the entries [begins, ends) that are visible.
auto attend(const std::string& isa, const Matrix<float>& queries, const Matrix<float>& keys,
            const Matrix<float>& values, const std::string& cache, const std::vector<int>& begins,
            const std::vector<int>& ends, float scale, float softcap,
            std::optional<Vector<float>> log_weights, std::optional<Matrix<uint8_t>> visible) {
  const Kernels& kernels = kernels_named(isa);
  const size_t rows = queries.shape(0), head_dim = queries.shape(1), entries = keys.shape(0);
  require(keys.shape(1) == head_dim && values.shape(1) == head_dim && values.shape(0) == entries,
          "keys and values must be [entries, head_dim]");
  require(begins.size() == rows && ends.size() == rows && rows > 0, "a range for each query");
  require(!log_weights || log_weights->size() == entries, "one log weight for each entry");
  require(!visible || (visible->shape(0) == rows && visible->shape(1) == entries),
          "visible must be [queries, entries]");
  // int4, int3 and int2: all whole units but the last two are codes, in a ring of three units.
  const bool coded = cache == "int4" || cache == "int3" || cache == "int2";
  const CacheType type = coded ? CacheType::kFloat16 : cache_type_named(cache);
  const StoredEntries stored_keys(kernels, keys, type), stored_values(kernels, values, type);
  auto y = zeros<float>({rows, head_dim});
  std::vector<AttentionRow> row_calls(rows);
  for (size_t row = 0; row < rows; ++row) {
    AttentionRow& it = row_calls[row];
    require(0 <= begins[row] && begins[row] < ends[row] && size_t(ends[row]) <= entries,
            "0 <= begin < end <= entries");
    it.query = queries.data() + row * head_dim;
    it.output = y.data() + row * head_dim;
    it.visible = visible ? visible->data() + row * entries + begins[row] : nullptr;
    it.begin = begins[row];
    it.end = ends[row];
  }
  AttentionCall call;
  call.keys = stored_keys.rows.data();
  call.values = stored_values.rows.data();
  call.key_scales = stored_keys.scales.data();
  call.value_scales = stored_values.scales.data();
  call.type = type;
  call.log_weights = log_weights ? log_weights->data() : nullptr;
  call.begin = *std::min_element(begins.begin(), begins.end());
  call.end = *std::max_element(ends.begin(), ends.end());
  call.head_dim = int(head_dim);
  call.scale = scale;
  call.softcap = softcap;
  call.rows = row_calls.data();
  call.num_rows = int(rows);
  const int bits = coded ? cache[3] - '0' : 0;
  const CodedEntries coded_keys(stored_keys, bits, int(head_dim), true);
  const CodedEntries coded_values(stored_values, bits, int(head_dim), false);
  const AlignedBuffer<float> decoded(decoded_floats(int(head_dim)));
  if (coded) {
    call.keys = coded_keys.ring.data(), call.values = coded_values.ring.data();
    call.coded_keys = coded_keys.units.data(), call.coded_values = coded_values.units.data();
    call.coded_bits = bits;
    call.folded = coded_keys.folded_units * kCacheUnit;
    call.ring_units = CodedEntries::kRingUnits;
    call.decoded = const_cast<float*>(decoded.data());
  }
  AttentionParts parts;
  parts.reserve(3 * rows, int(head_dim));
  attend_in_chunks(kernels, call, parts);
  return y;
}

}  // namespace

void bind_kernels(nb::module_& parent) {
  using namespace nb::literals;
  nb::module_ m = parent.def_submodule("kernels", "Kernel paths one by one, for tests.");
  m.def("paths", &paths, "Names of the kernel paths of this build on this CPU, fastest first.");
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
  m.def("sum_scales", &sum_scales, "isa"_a, "planes"_a, "scales"_a, "rows"_a, "columns"_a,
        "stored_columns"_a, "weight"_a, "Sums of scale * weight over the groups of each row.");
  m.def("rms_norm", &rms_norm, "isa"_a, "x"_a, "weight"_a, "offset"_a, "epsilon"_a);
  m.def("norm_quantize", &norm_quantize, "isa"_a, "x"_a, "weight"_a, "offset"_a, "epsilon"_a);
  m.def("rotate", &rotate, "isa"_a, "head"_a, "cosine"_a, "sine"_a);
  m.def("gated", &gated, "isa"_a, "activation"_a, "gate"_a, "up"_a);
  m.def("store_half", &store_half, "isa"_a, "x"_a, "fp32 -> fp16 bits, nearest even.");
  m.def("store_int8", &store_int8, "isa"_a, "x"_a, "fp32 -> codes and their scale.");
  m.def("attend", &attend, "isa"_a, "queries"_a, "keys"_a, "values"_a, "cache"_a, "begins"_a,
        "ends"_a, "scale"_a = 1.0f, "softcap"_a = 0.0f, "log_weights"_a = nb::none(),
        "visible"_a = nb::none());
  m.def("measure_product", &measure_product, "isa"_a, "num_planes"_a, "rows"_a, "columns"_a,
        "tokens"_a, "threads"_a, "num_matrices"_a, "rounds"_a,
        nb::call_guard<nb::gil_scoped_release>(),
        "Seconds per product in each round, over matrices visited in turn.");
  m.def("measure_read", &measure_read, "num_bytes"_a, "threads"_a, "rounds"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Seconds to read num_bytes in each round.");
  m.def("measure_barrier", &measure_barrier, "threads"_a, "phases"_a, "rounds"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Seconds of a phase with nothing to do.");
  nb::class_<Crew>(m, "Crew", "How many workers a step gets.")
      .def(nb::init<int>(), "workers"_a)
      .def("size_for", &Crew::size_for, "work"_a)
      .def("record", &Crew::record, "workers"_a, "work"_a, "seconds"_a, "slept_seconds"_a);
  m.def("quota_cpus", &quota_cpus, "root"_a, "self_cgroup"_a,
        "CPUs' worth of time that cgroups grant, rounded up; 0 without a quota.");
  m.def("measure_walk", &measure_walk, "step_bytes"_a, "streams"_a, "prefetch_bytes"_a,
        "num_bytes"_a, "threads"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Seconds to read memory in each round in the order of a layout.");
  m.def("measure_dot_peak", &measure_dot_peak, "isa"_a, "threads"_a, "rounds"_a,
        nb::call_guard<nb::gil_scoped_release>(),
        "Multiplications and additions per second of the path's dot-product instruction.");
  bind_coefficients(m);
  bind_signs(m);
  bind_ternary(m);
}

}  // namespace pliant
