// Matrix products of a phase, split between workers by tiles of 32 rows.
//
// Each output element is summed by one worker in the order the kernel contract fixes, so results
// do not depend on the number of workers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "base/buffer.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "kernels/low_rank.h"
#include "kernels/signs.h"

namespace pliant {

// How activations enter a product: rounded to int8 per group of 64, or exact.
enum class ActivationMode : int { kInt8 = 0, kFloat32 = 1 };

// Room for the int8 form of up to `tokens` rows.
class QuantizedRows {
 public:
  void reserve(int tokens, int columns);
  size_t size_bytes() const {
    return codes_.size_bytes() + scales_.size_bytes() + sums_.size_bytes();
  }

  // Quantizes the columns [begin, end) of row `token`, of which x[0] is column `begin`; `begin` is
  // a multiple of 64. Rows have the stride of `columns` columns.
  void quantize(const Kernels& kernels, const float* x, int token, int columns, Share part);

  // Row `token` of `columns` columns, normed and quantized.
  void norm(const Kernels& kernels, const float* x, const float* weight, float offset,
            float epsilon, int token, int columns);

  Int8Activations view(int tokens, int columns) const;

 private:
  AlignedBuffer<int8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<int32_t> sums_;
};

// The left side of a product in the form its mode asks for; the other form stays empty.
struct ProductInput {
  ActivationMode mode = ActivationMode::kInt8;
  int tokens = 0;
  Int8Activations quantized;
  const float* values = nullptr;  // [tokens][stride]
  size_t stride = 0;
};

// y[token][row] = W x + bias, and what an adapter adds to it (ops/reduction.h)
struct Product {
  const CodedMatrix* matrix = nullptr;
  const float* bias = nullptr;  // [rows] or nullptr
  float* output = nullptr;      // [tokens][stride]
  size_t stride = 0;
  const LowRank* low_rank = nullptr;  // nullptr: no adapter
};

// Products that share an input at most: q, k and v.
constexpr int kMostSharedProducts = 3;

// Row `row` in fp32: an embedding lookup.
void read_row(const Kernels& kernels, const CodedMatrix& matrix, int row, float* y);

// The rows of `tiles` of one product, without its adapter.
void multiply(const Kernels& kernels, const Product& product, const ProductInput& input,
              Share tiles, void* scratch);

// This worker's share of the tiles of all `products` of one input, taken as one run of tiles:
// multiply(place of the product, its tiles).
template <typename Multiply>
void for_each_share(std::span<const Product> products, int worker, int workers,
                    Multiply&& multiply) {
  int total = 0;
  for (const Product& product : products) total += product.matrix->tiles();
  const Share share = share_of(total, worker, workers);
  int start = 0;
  for (size_t place = 0; place < products.size(); ++place) {
    const int tiles = products[place].matrix->tiles();
    const Share own{std::max(share.begin - start, 0), std::min(share.end - start, tiles)};
    if (own.begin < own.end) multiply(place, own);
    start += tiles;
  }
}

}  // namespace pliant
