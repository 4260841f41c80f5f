// Low-rank updates against the scalar definition.
#include "checks.h"

namespace pliant {
namespace {

// z in two parts of blocks of ranks and of tokens, so that parts are tried too.
template <typename Reduce>
std::vector<float> reduced(const LowRank& factors, int tokens, Reduce&& reduce) {
  const size_t stride = size_t(factors.padded_rank()) + 3;
  std::vector<float> z(size_t(tokens) * stride, -7.0f);
  const int half = factors.blocks() / 2, middle = tokens / 3;
  for (const auto& [begin, end] : {std::array{0, middle}, std::array{middle, tokens}}) {
    reduce(LowRankPart{begin, end, 0, half}, z.data(), stride);
    reduce(LowRankPart{begin, end, half, factors.blocks()}, z.data(), stride);
  }
  return z;
}

std::vector<float> added(const Kernels& kernels, const LowRank& factors,
                         const std::vector<float>& z, int tokens) {
  const size_t y_stride = size_t(factors.rows) + 5, z_stride = size_t(factors.padded_rank()) + 3;
  std::vector<float> y(size_t(tokens) * y_stride, 0.5f);
  const int middle = factors.tiles() / 2;
  kernels.low_rank->add(factors, z.data(), tokens, z_stride, 0, middle, y.data(), y_stride);
  kernels.low_rank->add(factors, z.data(), tokens, z_stride, middle, factors.tiles(), y.data(),
                        y_stride);
  return y;
}

void check_one(const Kernels& scalar, const Kernels& path, int rank, int rows, int columns,
               int tokens) {
  const std::string what = std::string(path.isa) + " low rank " + std::to_string(rank) + " of " +
                           std::to_string(rows) + " x " + std::to_string(columns) + ", " +
                           std::to_string(tokens) + " tokens";
  const RandomLowRank matrix(rank, rows, columns);
  const auto x = exact(normals(size_t(tokens) * size_t(columns), 1.0f));
  const QuantizedTokens quantized(scalar, x, tokens, columns);
  const auto rounded = [&](const Kernels& kernels) {
    return reduced(matrix.view, tokens, [&](const LowRankPart& part, float* z, size_t stride) {
      kernels.low_rank->reduce_int8(matrix.view, quantized.view, part, z, stride);
    });
  };
  const auto whole = [&](const Kernels& kernels) {
    return reduced(matrix.view, tokens, [&](const LowRankPart& part, float* z, size_t stride) {
      kernels.low_rank->reduce_f32(matrix.view, x.data(), size_t(columns), part, z, stride);
    });
  };
  const std::vector<float> z = rounded(scalar);
  expect(same_bits(z, rounded(path)), what + ": reduce_int8");
  expect(same_bits(added(scalar, matrix.view, z, tokens), added(path, matrix.view, z, tokens)),
         what + ": add");
  // Two orders of summing 64 products of at most 128 x 5 with scales of 0.05, u = 2^-24, and the
  // sum over groups.
  const double largest = 128.0 * 5 * 0.05 * columns;
  expect(distance(whole(scalar), whole(path), largest * (2 * 64 + columns / 64 + 4) * 0x1p-24) <= 1,
         what + ": reduce_f32");
}

}  // namespace

void check_low_rank(const Kernels& scalar, const Kernels& path) {
  for (int rank : {1, 3, 8, 16, 17, 70})
    for (const auto& [rows, columns] :
         {std::array{1, 1}, std::array{40, 64}, std::array{33, 100}, std::array{150, 321}})
      for (int tokens : {1, 2, 3, 4, 7, 13}) check_one(scalar, path, rank, rows, columns, tokens);
}

}  // namespace pliant
