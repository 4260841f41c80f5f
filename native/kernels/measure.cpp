#include "kernels/measure.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "base/buffer.h"
#include "base/half.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "kernels/paths.h"

namespace pliant {
namespace {

double seconds_now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// Memory is read in pieces about as long as one matrix of measure_product.
constexpr size_t kPieceBytes = size_t(1) << 22;

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// xorshift64: fast bits without structure.
class RandomBytes {
 public:
  void fill(uint8_t* data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
      state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
      data[i] = uint8_t(state_ >> 32);
    }
  }

 private:
  uint64_t state_ = 0x9e3779b97f4a7c15u;
};

// Several random matrices of one shape; each plane is one run, as in an artifact.
struct Matrices {
  std::vector<AlignedBuffer<uint8_t>> planes;
  AlignedBuffer<uint16_t> scales;
  std::vector<PlaneMatrix> views;

  Matrices(int num_planes, int rows, int columns, int count) {
    PlaneMatrix view;
    view.num_planes = num_planes;
    view.rows = rows;
    view.columns = view.stored_columns = columns;
    const size_t bytes = size_t(view.tiles()) * view.tile_stride_bytes();
    const size_t num_scales = size_t(view.tiles()) * view.tile_stride_scales();
    scales.reserve(num_scales * size_t(count));
    for (size_t i = 0; i < scales.size(); ++i) scales[i] = float_to_half(0.01f);
    RandomBytes random;
    for (int plane = 0; plane < num_planes; ++plane) {
      planes.emplace_back(bytes * size_t(count));
      random.fill(planes.back().data(), planes.back().size());
    }
    for (int matrix = 0; matrix < count; ++matrix) {
      for (int plane = 0; plane < num_planes; ++plane) {
        view.planes[size_t(plane)] = planes[size_t(plane)].data() + size_t(matrix) * bytes;
      }
      view.scales = scales.data() + size_t(matrix) * num_scales;
      views.push_back(view);
    }
  }
};

struct Tokens {
  AlignedBuffer<int8_t> codes;
  AlignedBuffer<float> scales;
  AlignedBuffer<int32_t> sums;
  Int8Activations view;

  Tokens(const Kernels& kernels, int tokens, int columns) {
    const int stride = ceil_div(columns, kGroupColumns) * kGroupColumns;
    const size_t groups = size_t(stride / kGroupColumns);
    AlignedBuffer<float> x(static_cast<size_t>(columns));
    for (int i = 0; i < columns; ++i) x[size_t(i)] = float(i % 13) - 6.0f;
    codes.reserve(size_t(tokens) * size_t(stride));
    scales.reserve(size_t(tokens) * groups);
    sums.reserve(size_t(tokens) * groups);
    for (size_t token = 0; token < size_t(tokens); ++token) {
      kernels.quantize(x.data(), columns, stride, codes.data() + token * size_t(stride),
                       scales.data() + token * groups, sums.data() + token * groups);
    }
    view = {codes.data(), scales.data(), sums.data(), tokens, stride};
  }
};

// Reads [begin, begin + size) as four streams and returns something that depends on every byte.
uint64_t read_streams(const uint64_t* begin, size_t size) {
  const size_t quarter = size / 4;
  uint64_t sums[4] = {};
  for (size_t i = 0; i < quarter; i += 8) {
    for (size_t stream = 0; stream < 4; ++stream) {
      // One word of each line is enough to bring the line.
      sums[stream] += begin[stream * quarter + i];
    }
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

// `steps` steps from step `first` of every run; the places of the streams lie `apart` steps apart.
uint64_t walk_runs(const std::vector<AlignedBuffer<uint64_t>>& runs,
                   const std::vector<size_t>& step_bytes, size_t first, size_t apart, int streams,
                   size_t steps, size_t prefetch_bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < steps; ++i) {
    for (size_t stream = 0; stream < size_t(streams); ++stream) {
      const size_t at = first + stream * apart + i;
      for (size_t run = 0; run < runs.size(); ++run) {
        const size_t bytes = step_bytes[run];
        const char* from = reinterpret_cast<const char*>(runs[run].data()) + at * bytes;
        for (size_t line = 0; line < bytes; line += 64) {
          if (prefetch_bytes != 0) __builtin_prefetch(from + line + prefetch_bytes);
          sum += *reinterpret_cast<const uint64_t*>(from + line);
        }
      }
    }
  }
  return sum;
}

}  // namespace

std::vector<double> measure_product(const std::string& isa, int num_planes, int rows, int columns,
                                    int tokens, int threads, int num_matrices, int rounds) {
  if (num_planes < 1 || num_planes > kMaxPlanes || rows < 1 || columns < 1 || tokens < 1 ||
      num_matrices < 1) {
    throw std::invalid_argument("planes must be 1 to 8, sizes and counts at least 1");
  }
  const Kernels& kernels = kernels_named(isa, isa);
  const Matrices matrices(num_planes, rows, columns, num_matrices);
  const Tokens x(kernels, tokens, columns);
  AlignedBuffer<float> y(size_t(tokens) * size_t(rows));
  std::vector<AlignedBuffer<uint8_t>> scratch(static_cast<size_t>(threads));
  for (auto& buffer : scratch)
    buffer.reserve(kernels.planes_int8_scratch(matrices.views[0], tokens));
  ThreadPool pool(threads);
  std::vector<double> seconds, each(matrices.views.size());
  for (int round = -1; round < rounds; ++round) {  // the first warms up
    for (size_t i = 0; i < each.size(); ++i) {
      const PlaneMatrix& matrix = matrices.views[i];
      const double start = seconds_now();
      pool.run([&](int worker, int workers) {
        const Share share = share_of(matrix.tiles(), worker, workers);
        kernels.planes_int8(matrix, x.view, share.begin, share.end, y.data(), size_t(rows),
                            scratch[size_t(worker)].data());
      });
      each[i] = seconds_now() - start;
    }
    if (round >= 0) seconds.push_back(median(each));
  }
  return seconds;
}

std::vector<double> measure_read(size_t num_bytes, int threads, int rounds) {
  const size_t share = kPieceBytes / sizeof(uint64_t) / size_t(threads) / 32 * 32;
  const size_t piece = share * size_t(threads), num_pieces = num_bytes / kPieceBytes;
  if (share == 0 || num_pieces == 0) {
    throw std::invalid_argument("at least " + std::to_string(kPieceBytes) + " bytes are read");
  }
  AlignedBuffer<uint64_t> memory(piece * num_pieces);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = i;
  ThreadPool pool(threads);
  std::vector<double> seconds, each(num_pieces);
  for (int round = -1; round < rounds; ++round) {
    for (size_t i = 0; i < num_pieces; ++i) {
      const double start = seconds_now();
      pool.run([&](int worker, int) {
        volatile uint64_t sink =
            read_streams(memory.data() + i * piece + size_t(worker) * share, share);
        (void)sink;
      });
      each[i] = seconds_now() - start;
    }
    const double rate = double(piece * sizeof(uint64_t)) / median(each);
    if (round >= 0) seconds.push_back(double(num_bytes) / rate);
  }
  return seconds;
}

std::vector<double> measure_walk(const std::vector<size_t>& step_bytes, int streams,
                                 size_t prefetch_bytes, size_t num_bytes, int threads, int rounds) {
  size_t step = 0;
  for (size_t bytes : step_bytes) {
    if (bytes == 0 || bytes % 64 != 0) throw std::invalid_argument("steps are whole lines");
    step += bytes;
  }
  const size_t walks = size_t(streams) * size_t(threads);
  const size_t num_steps = step == 0 || streams < 1 ? 0 : num_bytes / step / walks;
  if (num_steps == 0) throw std::invalid_argument("one step and one stream at least");
  std::vector<AlignedBuffer<uint64_t>> runs;
  for (size_t bytes : step_bytes) {
    runs.emplace_back(bytes / sizeof(uint64_t) * num_steps * walks);
    for (size_t i = 0; i < runs.back().size(); ++i) runs.back()[i] = i;
  }
  const size_t slice = std::min(num_steps, (kPieceBytes / step + walks) / walks);
  ThreadPool pool(threads);
  std::vector<double> seconds, each(num_steps / slice);
  for (int round = -1; round < rounds; ++round) {
    for (size_t i = 0; i < each.size(); ++i) {
      const double start = seconds_now();
      pool.run([&](int worker, int) {
        const size_t first = size_t(worker) * size_t(streams) * num_steps + i * slice;
        volatile uint64_t sink =
            walk_runs(runs, step_bytes, first, num_steps, streams, slice, prefetch_bytes);
        (void)sink;
      });
      each[i] = seconds_now() - start;
    }
    const double rate = double(slice * walks * step) / median(each);
    if (round >= 0) seconds.push_back(double(num_bytes) / rate);
  }
  return seconds;
}

std::vector<double> measure_dot_peak(const std::string& isa, int threads, int rounds) {
  kernels_named(isa, isa);
  std::vector<double> rates;
#if defined(__x86_64__)
  if (isa != "avx512" && isa != "avx2") return rates;
  const bool wide = isa == "avx512";
  const auto repeat_dots = wide ? repeat_dots_avx512 : repeat_dots_avx2;
  constexpr int64_t kRepeats = 200'000;
  ThreadPool pool(threads);
  for (int round = -1; round < rounds; ++round) {
    const double start = seconds_now();
    pool.run([&](int, int) { repeat_dots(kRepeats); });
    const double operations = double(kRepeats) * kDotsPerRepeat * 2 * (wide ? 64 : 32) * threads;
    if (round >= 0) rates.push_back(operations / (seconds_now() - start));
  }
#else
  (void)threads, (void)rounds;
#endif
  return rates;
}

std::vector<double> measure_barrier(int threads, int phases, int rounds) {
  ThreadPool pool(threads);
  std::vector<double> seconds;
  for (int round = -1; round < rounds; ++round) {
    pool.step_aside();
    const double start = seconds_now();
    for (int phase = 0; phase < phases; ++phase) pool.run([](int, int) {});
    if (round >= 0) seconds.push_back((seconds_now() - start) / phases);
  }
  return seconds;
}

}  // namespace pliant
