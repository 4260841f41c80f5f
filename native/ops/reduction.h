// What adapters make of the input of a phase, z = A x, before their B z is added to its products.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "base/buffer.h"
#include "ops/product.h"

namespace pliant {

// All workers sum z together, each a share, and need no barrier after it: one that comes to add
// B z while another is still summing makes what it needs for itself, to the same bits. Between the
// two lies the product with the planes, so that this is rare, and no worker waits for another.
class Reduction {
 public:
  // Room for `tokens` tokens of at most `ranks` padded ranks; with `own`, for few tokens, each
  // worker has room of its own, without which all of z must be there before any is added.
  void reserve(int tokens, int ranks, int workers, bool own);
  size_t size_bytes() const { return shared_.size_bytes() + own_.size_bytes(); }

  // Begins a phase of `products` that `workers` workers share; called by one thread before it.
  void begin(std::span<const Product> products, int workers);

  // This worker's share of z of all products: of the tokens where there are many, else of the
  // blocks of ranks.
  void sum_share(const Kernels& kernels, const ProductInput& input, int worker);

  // Adds B z to the rows of `tiles` of product number `place` of the phase, if it has an adapter.
  void add(const Kernels& kernels, size_t place, const ProductInput& input, Share tiles,
           int worker);

 private:
  // The turn that a worker has finished, on a line of its own.
  struct alignas(64) Finished {
    std::atomic<uint64_t> turn{0};
  };

  bool is_finished() const;
  void sum(const Kernels& kernels, size_t place, const ProductInput& input, const LowRankPart& part,
           float* z) const;

  AlignedBuffer<float> shared_;  // [tokens][ranks]
  AlignedBuffer<float> own_;     // [workers][tokens][ranks]
  std::unique_ptr<Finished[]> finished_;
  int most_workers_ = 0;
  size_t stride_ = 0;
  size_t own_stride_ = 0;  // between workers; 0: no room
  uint64_t turn_ = 0;
  int workers_ = 1;
  size_t count_ = 0;
  std::array<Product, kMostSharedProducts> products_;
  std::array<size_t, kMostSharedProducts> starts_{};  // of each product in a row of z
  int blocks_ = 0;                                    // of all products
};

}  // namespace pliant
