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

// Norm and rounding in one pass give the bits of both; sums of scales have no fixed order.
void check_fused(const Kernels& scalar, const Kernels& path) {
  for (int columns : {1, 8, 31, 32, 63, 64, 65, 130, 200, 1000}) {
    const size_t n = size_t(columns);
    const int stride = ceil_div(columns, kGroupColumns) * kGroupColumns;
    const size_t groups = size_t(stride / kGroupColumns);
    const auto x = exact(normals(n, 3.0f)), weight = exact(normals(n, 1.0f));
    std::vector<float> normed(n), scales(groups);
    path.rms_norm(x.data(), weight.data(), 1.0f, 1e-6f, columns, normed.data());
    const QuantizedTokens apart(path, exact(normed), 1, columns);
    AlignedBuffer<int8_t> codes{size_t(stride)};
    std::vector<int32_t> sums(groups);
    path.norm_quantize(x.data(), weight.data(), 1.0f, 1e-6f, columns, stride, codes.data(),
                       scales.data(), sums.data());
    const bool same = std::memcmp(codes.data(), apart.codes.data(), size_t(stride)) == 0 &&
                      same_bits(scales, apart.scales) && sums == apart.sums;
    expect(same, std::string(path.isa) + " norm_quantize " + std::to_string(columns));

    const RandomMatrix matrix(2, 70, columns, columns + 40);
    const auto of_groups = exact(normals(groups, 1.0f));
    std::vector<float> a(70), b(70);
    const int tiles = matrix.view.tiles();
    scalar.sum_scales(matrix.view, of_groups.data(), 0, tiles, a.data());
    path.sum_scales(matrix.view, of_groups.data(), 0, 1, b.data());
    path.sum_scales(matrix.view, of_groups.data(), 1, tiles, b.data());
    // Scales are below 2^-5 and weights below 5: 2 (n + 2) u sum|w x|.
    const double bound = 2.0 * (double(groups) + 2) * 0x1p-24 * double(groups) * 5 * 0x1p-5;
    expect(distance(a, b, bound) <= 1.0, std::string(path.isa) + " sum_scales");
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
  check_fused(scalar, path);
  check_attention(scalar, path);
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
  check_cache_codes();
  check_shift_add();
  check_threads();
  for (const Kernels* path : available_kernels()) {
    if (path != kernels_for(Isa::kScalar)) check_path(*path);
  }
#if defined(__x86_64__)
  if (kernels_for(Isa::kAvx2) != nullptr) check_path(kEmulatedAvxVnniKernels);
#endif
  check_engine();
  std::printf("%s\n", num_failures == 0 ? "all agree with the scalar definition" : "FAILED");
  return num_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace pliant

int main(int count, char** arguments) { return pliant::run({arguments + 1, arguments + count}); }
