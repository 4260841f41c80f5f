#include "ops/product.h"

#include <algorithm>

namespace pliant {

void QuantizedRows::reserve(int tokens, int columns) {
  const size_t groups = size_t(tokens) * ceil_div(columns, kGroupColumns);
  codes_.reserve(groups * kGroupColumns);
  scales_.reserve(groups);
  sums_.reserve(groups);
}

void QuantizedRows::quantize(const Kernels& kernels, const float* x, int token, int columns,
                             Share part) {
  const int size = part.end - part.begin;
  const size_t first =
      size_t(token) * ceil_div(columns, kGroupColumns) + part.begin / kGroupColumns;
  const int stride = ceil_div(size, kGroupColumns) * kGroupColumns;
  kernels.quantize(x, size, stride, codes_.data() + first * kGroupColumns, scales_.data() + first,
                   sums_.data() + first);
}

void QuantizedRows::norm(const Kernels& kernels, const float* x, const float* weight, float offset,
                         float epsilon, int token, int columns) {
  const int groups = ceil_div(columns, kGroupColumns);
  const size_t first = size_t(token) * groups;
  kernels.norm_quantize(x, weight, offset, epsilon, columns, groups * kGroupColumns,
                        codes_.data() + first * kGroupColumns, scales_.data() + first,
                        sums_.data() + first);
}

Int8Activations QuantizedRows::view(int tokens, int columns) const {
  return {codes_.data(), scales_.data(), sums_.data(), tokens,
          ceil_div(columns, kGroupColumns) * kGroupColumns};
}

namespace {

void multiply_signs(const SignKernels& kernels, const Product& product, const ProductInput& input,
                    Share tiles) {
  if (input.mode == ActivationMode::kInt8) {
    kernels.product_int8(*product.matrix, input.quantized, tiles.begin, tiles.end, product.output,
                         product.stride);
  } else {
    kernels.product_f32(*product.matrix, input.values, input.tokens, input.stride, tiles.begin,
                        tiles.end, product.output, product.stride);
  }
}

}  // namespace

void read_row(const Kernels& kernels, const CodedMatrix& matrix, int row, float* y) {
  if (matrix.form == PlaneForm::kSigns) {
    signs_row(matrix, row, y);
  } else {
    kernels.decode_row(matrix, row, y);
  }
}

void multiply(const Kernels& kernels, const Product& product, const ProductInput& input,
              Share tiles, void* scratch) {
  if (tiles.begin >= tiles.end) return;
  const CodedMatrix& matrix = *product.matrix;
  if (matrix.form == PlaneForm::kSigns) {
    multiply_signs(sign_kernels(kernels), product, input, tiles);
  } else if (input.mode == ActivationMode::kInt8) {
    kernels.planes_int8(matrix, input.quantized, tiles.begin, tiles.end, product.output,
                        product.stride, scratch);
  } else {
    kernels.planes_f32(matrix, input.values, input.tokens, input.stride, tiles.begin, tiles.end,
                       product.output, product.stride);
  }
  if (product.bias != nullptr) {
    const int first = tiles.begin * kTileRows;
    const int size = std::min(tiles.end * kTileRows, matrix.rows) - first;
    for (int token = 0; token < input.tokens; ++token)
      kernels.add(product.bias + first, size, product.output + token * product.stride + first);
  }
  if (product.low_rank != nullptr)
    kernels.low_rank->add(*product.low_rank, product.reduced, input.tokens, product.reduced_stride,
                          tiles.begin, tiles.end, product.output, product.stride);
}

void reduce_share(const Kernels& kernels, std::span<const Product> products,
                  const ProductInput& input, int worker, int workers) {
  int total = 0;
  for (const Product& product : products)
    if (product.low_rank != nullptr) total += product.low_rank->rank;
  const bool by_tokens = input.tokens >= workers;
  const Share tokens = by_tokens ? share_of(input.tokens, worker, workers) : Share{0, input.tokens};
  const Share ranks = by_tokens ? Share{0, total} : share_of(total, worker, workers);
  int start = 0;
  for (const Product& product : products) {
    if (product.low_rank == nullptr) continue;
    const int rank = product.low_rank->rank;
    const LowRankPart part{tokens.begin, tokens.end, std::max(ranks.begin - start, 0),
                           std::min(ranks.end - start, rank)};
    start += rank;
    if (part.rank_begin >= part.rank_end) continue;
    if (input.mode == ActivationMode::kInt8) {
      kernels.low_rank->reduce_int8(*product.low_rank, input.quantized, part, product.reduced,
                                    product.reduced_stride);
    } else {
      kernels.low_rank->reduce_f32(*product.low_rank, input.values, input.stride, part,
                                   product.reduced, product.reduced_stride);
    }
  }
}

void multiply_share(const Kernels& kernels, std::span<const Product> products,
                    const ProductInput& input, int worker, int workers, void* scratch) {
  int total = 0;
  for (const Product& product : products) total += product.matrix->tiles();
  const Share share = share_of(total, worker, workers);
  int start = 0;
  for (const Product& product : products) {
    const int tiles = product.matrix->tiles();
    multiply(kernels, product, input,
             {std::max(share.begin - start, 0), std::min(share.end - start, tiles)}, scratch);
    start += tiles;
  }
}

}  // namespace pliant
