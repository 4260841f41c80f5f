#include "ops/reduction.h"

#include <algorithm>

namespace pliant {

void Reduction::reserve(int tokens, int ranks, int workers, bool own) {
  if (ranks == 0) return;
  stride_ = size_t(ranks);
  const size_t values = size_t(tokens) * stride_;
  shared_.reserve(values);
  own_stride_ = own ? values : 0;
  own_.reserve(own_stride_ * size_t(workers));
  if (workers <= most_workers_) return;
  finished_ = std::make_unique<Finished[]>(size_t(workers));
  most_workers_ = workers;
}

void Reduction::begin(std::span<const Product> products, int workers) {
  ++turn_;
  workers_ = workers;
  count_ = products.size();
  blocks_ = 0;
  std::copy(products.begin(), products.end(), products_.begin());
  for (size_t place = 0; place < count_; ++place) {
    starts_[place] = size_t(blocks_) * kBlockRanks;
    if (products[place].low_rank != nullptr) blocks_ += products[place].low_rank->blocks();
  }
}

void Reduction::sum_share(const Kernels& kernels, const ProductInput& input, int worker) {
  const bool by_tokens = input.tokens >= workers_;
  const Share all{0, input.tokens};
  const Share tokens = by_tokens ? share_of(input.tokens, worker, workers_) : all;
  const Share blocks = by_tokens ? Share{0, blocks_} : share_of(blocks_, worker, workers_);
  for (size_t place = 0; place < count_; ++place) {
    if (products_[place].low_rank == nullptr) continue;
    const int start = int(starts_[place]) / kBlockRanks;
    const LowRankPart part{tokens.begin, tokens.end, std::max(blocks.begin - start, 0),
                           std::min(blocks.end - start, products_[place].low_rank->blocks())};
    if (part.block_begin < part.block_end)
      sum(kernels, place, input, part, shared_.data() + starts_[place]);
  }
  finished_[size_t(worker)].turn.store(turn_, std::memory_order_release);
}

void Reduction::add(const Kernels& kernels, size_t place, const ProductInput& input, Share tiles,
                    int worker) {
  const Product& product = products_[place];
  if (product.low_rank == nullptr || tiles.begin >= tiles.end) return;
  const float* z = shared_.data();
  if (own_stride_ > 0 && !is_finished()) {
    float* own = own_.data() + size_t(worker) * own_stride_;
    sum(kernels, place, input, {0, input.tokens, 0, product.low_rank->blocks()},
        own + starts_[place]);
    z = own;
  }
  kernels.low_rank->add(*product.low_rank, z + starts_[place], input.tokens, stride_, tiles.begin,
                        tiles.end, product.output, product.stride);
}

bool Reduction::is_finished() const {
  for (int worker = 0; worker < workers_; ++worker)
    if (finished_[size_t(worker)].turn.load(std::memory_order_acquire) != turn_) return false;
  return true;
}

void Reduction::sum(const Kernels& kernels, size_t place, const ProductInput& input,
                    const LowRankPart& part, float* z) const {
  const LowRank& factors = *products_[place].low_rank;
  if (input.mode == ActivationMode::kInt8) {
    kernels.low_rank->reduce_int8(factors, input.quantized, part, z, stride_);
  } else {
    kernels.low_rank->reduce_f32(factors, input.values, input.stride, part, z, stride_);
  }
}

}  // namespace pliant
