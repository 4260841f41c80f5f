// Compares every kernel path of this machine with the scalar definition: without Python, so that it
// runs under sanitizers and under an emulator. Exits with 1 after naming what differs.
//
// Arguments are the names of the paths that must be available here, all of them: an emulated
// processor that offers more or less than is meant would leave a path untested in silence.
#include "kernels/kernels.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/half.h"
#include "base/threads.h"
#include "checks.h"

namespace pliant {
namespace {

std::vector<float> product(const Kernels& kernels, const PlaneMatrix& matrix,
                           const Int8Activations& x) {
  // Rows of y lie apart, and what lies between must stay untouched.
  const size_t y_stride = size_t(matrix.rows) + 3;
  std::vector<float> y(size_t(x.tokens) * y_stride, -7.0f);
  AlignedBuffer<uint8_t> scratch(kernels.planes_int8_scratch(matrix, x.tokens));
  const int middle = matrix.tiles() / 2;
  kernels.planes_int8(matrix, x, 0, middle, y.data(), y_stride, scratch.data());
  kernels.planes_int8(matrix, x, middle, matrix.tiles(), y.data(), y_stride, scratch.data());
  return y;
}

void check_planes_int8(const Kernels& scalar, const Kernels& path) {
  const int shapes[][3] = {{1, 8, 8},        {1, 32, 32},   {5, 40, 72},      {32, 64, 64},
                           {33, 96, 96},     {48, 97, 260}, {70, 2112, 2112}, {129, 200, 333},
                           {31, 2049, 2200}, {520, 96, 96}};
  for (const auto& [rows, columns, stored_columns] : shapes) {
    for (int planes = 1; planes <= kMaxPlanes; ++planes) {
      const RandomMatrix matrix(planes, rows, columns, stored_columns);
      for (int tokens : {1, 2, 3, 4, 5, 7, 8, 9, 13, 25, 40}) {
        if (columns > 2000 && tokens > 13) continue;
        const auto x = exact(normals(size_t(tokens) * size_t(columns), 1.0f));
        const QuantizedTokens quantized(scalar, x, tokens, columns);
        const std::string name = std::string(path.isa) + " planes_int8 " + std::to_string(planes) +
                                 " planes, " + std::to_string(rows) + " x " +
                                 std::to_string(columns) + ", " + std::to_string(tokens) +
                                 " tokens";
        expect(same_bits(product(scalar, matrix.view, quantized.view),
                         product(path, matrix.view, quantized.view)),
               name);
      }
    }
  }
}

// Tokens beyond one superblock, and the largest codes there are: no intermediate sum may saturate.
void check_planes_int8_extremes(const Kernels& scalar, const Kernels& path) {
  for (int planes = 1; planes <= kMaxPlanes; ++planes) {
    RandomMatrix matrix(planes, 40, 160, 160);
    for (auto& plane : matrix.planes) std::fill(plane.begin(), plane.end(), uint8_t(0xff));
    std::vector<float> x(200 * 160, 1.0f);
    for (size_t i = 0; i < 160; ++i) x[i] = -1.0f;
    for (size_t i = 160; i < 320; ++i) x[i] = i % 3 == 0 ? 1e-20f : -1e30f;
    x[500] = NAN, x[700] = INFINITY;
    for (int tokens : {1, 200}) {
      const QuantizedTokens quantized(scalar, exact(x), tokens, 160);
      expect(same_bits(product(scalar, matrix.view, quantized.view),
                       product(path, matrix.view, quantized.view)),
             std::string(path.isa) + " planes_int8 extremes " + std::to_string(planes));
    }
  }
}

void check_quantize(const Kernels& scalar, const Kernels& path) {
  for (int columns : {1, 8, 31, 32, 63, 64, 65, 130, 200, 1000}) {
    for (float deviation : {1.0f, 1e-25f, 1e-19f, 1e28f, 3e29f}) {
      auto x = exact(normals(size_t(columns), deviation));
      if (deviation == 1.0f && columns > 100) {
        x[3] = NAN, x[70] = -INFINITY, x[size_t(columns) - 1] = 0.5f;
      }
      for (size_t i = 0; i + 1 < x.size(); i += 2) x[i] = deviation * float(int(i % 255) - 127) / 2;
      const QuantizedTokens a(scalar, x, 1, columns), b(path, x, 1, columns);
      const bool same = std::memcmp(a.codes.data(), b.codes.data(), size_t(a.view.stride)) == 0 &&
                        same_bits(a.scales, b.scales) && a.sums == b.sums;
      expect(same, std::string(path.isa) + " quantize " + std::to_string(columns));
    }
  }
}

void check_planes_f32(const Kernels& scalar, const Kernels& path) {
  for (const auto& [rows, columns, stored] : {std::array{1, 8, 8}, {33, 96, 128}, {70, 333, 340}}) {
    for (int planes = 1; planes <= kMaxPlanes; ++planes) {
      const RandomMatrix matrix(planes, rows, columns, stored);
      for (int tokens : {1, 3, 6}) {
        const size_t size = size_t(tokens) * size_t(rows);
        const auto x = exact(normals(size_t(tokens) * size_t(columns), 1.0f));
        std::vector<float> a(size), b(size);
        for (const Kernels* kernels : {&scalar, &path}) {
          kernels->planes_f32(matrix.view, x.data(), tokens, size_t(columns), 0,
                              matrix.view.tiles(), (kernels == &path ? b : a).data(), size_t(rows));
        }
        // Two orders of summation: 2 (n + 2) u sum|w x|, |w| <= 128 * 0.02, E|x| < 1.
        const double bound = 2.0 * (columns + 2) * 0x1p-24 * columns * 2.56;
        expect(distance(a, b, bound) <= 1.0, std::string(path.isa) + " planes_f32");
      }
      std::vector<float> a(static_cast<size_t>(columns)), b(a);
      scalar.decode_row(matrix.view, rows - 1, a.data());
      path.decode_row(matrix.view, rows - 1, b.data());
      expect(same_bits(a, b), std::string(path.isa) + " decode_row");
    }
  }
}

void check_elementwise(const Kernels& scalar, const Kernels& path) {
  const std::string isa = path.isa;
  for (int size : {1, 2, 7, 16, 30, 64, 288, 1001}) {
    const size_t n = size_t(size);
    const auto x = exact(normals(n, 3.0f)), w = exact(normals(n, 1.0f));
    std::vector<float> a(n), b(n);
    scalar.rms_norm(x.data(), w.data(), 1.0f, 1e-6f, size, a.data());
    path.rms_norm(x.data(), w.data(), 1.0f, 1e-6f, size, b.data());
    expect(distance(a, b, 40.0) <= (size + 8) * 0x1p-24, isa + " rms_norm");
    for (auto activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
      auto gate = normals(n, 6.0f);
      gate[0] = size % 2 == 0 ? 300.0f : -300.0f;
      scalar.gated(activation, gate.data(), w.data(), size, a.data());
      path.gated(activation, gate.data(), w.data(), size, b.data());
      // 16 u of |gate * up| from rounding, and half of 1.5e-7 from the error function.
      expect(distance(a, b, 30.0 * 4.0) <= 16 * 0x1p-24 + 0.75e-7,
             isa + " gated " + std::to_string(int(activation)));
    }
    a = b = w;
    scalar.add(x.data(), size, a.data());
    path.add(x.data(), size, b.data());
    expect(same_bits(a, b), isa + " add");
    if (size % 2 == 0) {
      a = b = x;
      scalar.rotate(a.data(), w.data(), w.data() + size / 2, size);
      path.rotate(b.data(), w.data(), w.data() + size / 2, size);
      expect(distance(a, b, 60.0) <= 4 * 0x1p-24, isa + " rotate");
    }
    auto values = normals(n, 100.0f);
    if (size > 8) {
      values[0] = NAN, values[1] = INFINITY, values[2] = 65519.9f, values[3] = 65520.0f;
      values[4] = 3e-8f, values[5] = -6.1e-5f, values[6] = 1e-9f, values[7] = 2049.0f;
    }
    std::vector<uint16_t> half_a(n), half_b(n);
    scalar.store(values.data(), size, CacheType::kFloat16, half_a.data(), nullptr);
    path.store(values.data(), size, CacheType::kFloat16, half_b.data(), nullptr);
    expect(half_a == half_b, isa + " store " + std::to_string(size));
    std::vector<int8_t> codes_a(n), codes_b(n);
    float scale_a = 0.0f, scale_b = 0.0f;
    scalar.store(x.data(), size, CacheType::kInt8, codes_a.data(), &scale_a);
    path.store(x.data(), size, CacheType::kInt8, codes_b.data(), &scale_b);
    expect(codes_a == codes_b && scale_a == scale_b, isa + " store int8 " + std::to_string(size));
  }
}

// Entries [entries][head_dim] in memory of exactly the size that a cache of their type has.
struct StoredEntries {
  std::vector<uint8_t> rows;
  std::vector<float> scales;

  StoredEntries(const Kernels& kernels, const std::vector<float>& values, int entries, int head_dim,
                CacheType type) {
    const size_t value_bytes = type == CacheType::kFloat32   ? 4
                               : type == CacheType::kFloat16 ? 2
                                                             : 1;
    rows.resize(values.size() * value_bytes);
    scales.resize(size_t(entries));
    for (int entry = 0; entry < entries; ++entry) {
      const size_t first = size_t(entry) * size_t(head_dim);
      kernels.store(values.data() + first, head_dim, type, rows.data() + first * value_bytes,
                    &scales[size_t(entry)]);
    }
  }
};

// Rows that see all, a part from the middle on, and what a mask leaves.
struct RandomRows {
  std::vector<float> queries, outputs;
  std::vector<uint8_t> visible;
  std::vector<AttentionRow> rows;

  RandomRows(int num_rows, int entries, int head_dim)
      : queries(exact(normals(size_t(num_rows * head_dim), 1.0f))),
        outputs(queries.size()),
        visible(size_t(entries)) {
    for (uint8_t& flag : visible) flag = random_bits() % 3 != 0;
    visible.back() = 1;
    for (int row = 0; row < num_rows; ++row) {
      AttentionRow it;
      it.query = queries.data() + row * head_dim;
      it.output = outputs.data() + row * head_dim;
      it.begin = row % 3 == 1 ? entries / 3 : 0;
      it.end = row % 4 == 2 ? (entries + it.begin + 1) / 2 : entries;
      if (row % 3 == 2 && it.end == entries) it.visible = visible.data();
      rows.push_back(it);
    }
  }
};

void check_attend_size(const Kernels& scalar, const Kernels& path, int num_rows, int entries,
                       int head_dim, int variant) {
  const size_t size = size_t(entries) * size_t(head_dim);
  const CacheType type = CacheType(variant % 3);
  const auto keys = exact(normals(size, 1.0f)), values = exact(normals(size, 1.0f));
  const StoredEntries stored_keys(scalar, keys, entries, head_dim, type);
  const StoredEntries stored_values(path, values, entries, head_dim, type);
  auto log_weights = normals(size_t(entries), 1.0f);
  if (entries > 3) log_weights[1] = -INFINITY;
  RandomRows random(num_rows, entries, head_dim);
  AttentionCall call;
  call.keys = stored_keys.rows.data();
  call.values = stored_values.rows.data();
  call.key_scales = stored_keys.scales.data();
  call.value_scales = stored_values.scales.data();
  call.type = type;
  call.end = entries;
  call.log_weights = variant >= 3 ? log_weights.data() : nullptr;
  call.softcap = variant >= 3 ? 20.0f : 0.0f;
  call.head_dim = head_dim;
  call.scale = 1.0f / std::sqrt(float(head_dim));
  call.rows = random.rows.data();
  call.num_rows = num_rows;
  const auto finished = [&](const Kernels& kernels) {
    kernels.attend(call);
    std::vector<float> output;
    for (int i = 0; i < num_rows * head_dim; ++i)
      output.push_back(random.outputs[size_t(i)] / random.rows[size_t(i / head_dim)].total);
    return output;
  };
  const std::vector<float> a = finished(scalar), b = finished(path);
  // A score differs by 2 (d + 3) u |q||k| scale, |q||k| scale < 4 sqrt(d), and by 16 u of the
  // cap; a weight by as much, relative; |v| < 6. Sums over entries: 2 (n + 8) u |v|.
  const double score = 2 * (head_dim + 3) * 4 * std::sqrt(head_dim) + 16 * 20;
  const double bound = 0x1p-24 * 6 * (2 * score + 2 * (entries + 8));
  expect(distance(a, b, bound) <= 1.0, std::string(path.isa) + " attend " +
                                           std::to_string(num_rows) + " " +
                                           std::to_string(head_dim) + " " +
                                           std::to_string(entries) + " " + std::to_string(variant));
}

void check_attend(const Kernels& scalar, const Kernels& path) {
  for (int head_dim : {2, 8, 24, 32, 64, 80, 128, 256})
    for (int entries : {1, 3, 4, 63, 64, 65, 200})
      for (int num_rows : {1, 2, 3, 4, 7, 18})
        for (int variant = 0; variant < 6; ++variant)
          check_attend_size(scalar, path, num_rows, entries, head_dim, variant);
}

void check_half() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = half_to_float(uint16_t(bits));
    if (std::isnan(value)) continue;
    expect(float_to_half(value) == bits, "half round trip " + std::to_string(bits));
  }
}

void check_threads() {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<int> seen(size_t(threads), 0);
      pool.run([&](int worker, int workers) {
        // Now the caller waits, now it takes the shares of those that are late.
        if (round % 8 == worker) std::this_thread::sleep_for(std::chrono::microseconds(200));
        seen[size_t(worker)] += workers;
      });
      expect(seen == std::vector<int>(size_t(threads), threads), "every worker once");
    }
    for (int thrower = 0; thrower < threads; ++thrower) {
      bool caught = false;
      try {
        pool.run([&](int worker, int) {
          if (worker == thrower) throw std::runtime_error("expected");
        });
      } catch (const std::runtime_error&) {
        caught = true;
      }
      expect(caught, "exception of a worker");
    }
  }
  for (int threads : {0, -1, 10000}) {
    bool refused = false;
    try {
      ThreadPool pool(threads);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    expect(refused, "thread count " + std::to_string(threads));
  }
}

void check_available(const std::vector<std::string>& expected) {
  std::vector<std::string> found;
  for (const Kernels* kernels : available_kernels()) found.emplace_back(kernels->isa);
  std::string names;
  for (const std::string& name : found) names += " " + name;
  expect(found.back() == "scalar", "the scalar path comes last");
  expect(expected.empty() || found == expected, "paths available:" + names);
}

void check_path(const Kernels& path) {
  const Kernels& scalar = *kernels_for(Isa::kScalar);
  check_quantize(scalar, path);
  check_planes_int8_extremes(scalar, path);
  check_planes_int8(scalar, path);
  check_planes_f32(scalar, path);
  check_elementwise(scalar, path);
  check_attend(scalar, path);
  check_coefficients(scalar, path);
  check_signs(scalar, path);
  check_ternary(scalar, path);
  check_low_rank(scalar, path);
  check_scores(scalar, path);
  std::printf("%-12s checked, %d failures so far\n", path.isa, num_failures);
}

int run(const std::vector<std::string>& expected) {
  check_available(expected);
  check_half();
  check_threads();
  for (const Kernels* path : available_kernels()) {
    if (path != kernels_for(Isa::kScalar)) check_path(*path);
  }
#if defined(__x86_64__)
  if (kernels_for(Isa::kAvx2) != nullptr) check_path(kEmulatedAvxVnniKernels);
#endif
  std::printf("%s\n", num_failures == 0 ? "all agree with the scalar definition" : "FAILED");
  return num_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace pliant

int main(int count, char** arguments) { return pliant::run({arguments + 1, arguments + count}); }
