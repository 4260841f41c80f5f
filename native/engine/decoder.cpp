#include "engine/decoder.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "engine/errors.h"
#include "engine/pass.h"

namespace pliant {
namespace {

double seconds_now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

std::vector<int> distinct_windows(const DecoderWeights& weights) {
  std::vector<int> windows;
  for (const BlockWeights& block : weights.blocks)
    if (std::find(windows.begin(), windows.end(), block.window) == windows.end())
      windows.push_back(block.window);
  return windows;
}

const DecoderConfig& checked(const DecoderConfig& config, const DecoderWeights& weights) {
  check_weights(config, weights);
  return config;
}

// Holds the caches of a request; gives back those held when one is in use elsewhere.
class CacheHold {
 public:
  explicit CacheHold(std::span<const Sequence> sequences) {
    for (const Sequence& sequence : sequences) {
      if (!sequence.cache->try_acquire()) {
        release();
        throw UsageError("A cache is in use by another forward pass; run one after the other.");
      }
      held_.push_back({sequence.cache, {}, sequence.size()});
    }
    try {
      for (Held& held : held_) held.mark = held.cache->mark(held.coming);
    } catch (...) {
      release();
      throw;
    }
  }
  ~CacheHold() { release(); }

  // Takes back what was appended since the hold began.
  void undo() {
    for (const Held& held : held_) held.cache->undo(held.mark, held.coming);
  }

 private:
  void release() {
    for (const Held& held : held_) held.cache->release();
    held_.clear();
  }
  struct Held {
    KVCache* cache;
    KVCache::Mark mark;
    int coming;
  };
  std::vector<Held> held_;
};

}  // namespace

Decoder::Decoder(DecoderConfig config, DecoderWeights weights)
    : config_(checked(config, weights)),
      weights_(std::move(weights)),
      kernels_(best_kernels()),
      num_block_weights_(weights_.num_block_weights()),
      weight_ranges_(joined(weights_.ranges(), 0)),
      cache_layout_(std::make_shared<CacheLayout>()),
      step_(distinct_windows(weights_), config_.tile_tokens()),
      pool_(config_.threads),
      crew_(config_.threads) {
  cache_layout_->type = config_.cache_type;
  cache_layout_->bits = config_.cache_bits;
  cache_layout_->window = config_.cache_window;
  cache_layout_->head_dim = config_.head_dim;
  cache_layout_->max_context = config_.max_context;
  const std::vector<int> windows = distinct_windows(weights_);
  for (const BlockWeights& block : weights_.blocks) {
    cache_layout_->blocks.push_back(block.block);
    cache_layout_->groups.push_back(block.groups);
    window_kinds_.push_back(
        int(std::find(windows.begin(), windows.end(), block.window) - windows.begin()));
  }
  for (const Rotation& rotation : config_.rotations)
    ropes_.emplace_back(rotation.frequencies, rotation.amplitude);
  if (config_.preload == Preload::kLock) locked_ranges_ = weight_ranges_;
  preload(weight_ranges_, config_.preload);
}

Decoder::~Decoder() { unlock(locked_ranges_); }

void Decoder::leave_locked(const Decoder& next) noexcept {
  try {
    locked_ranges_ = pages_without(locked_ranges_, next.locked_ranges_);
  } catch (const std::bad_alloc&) {
    locked_ranges_.clear();  // too much stays locked rather than too little
  }
}

std::vector<KVCache*> Decoder::live_caches() const {
  const std::lock_guard lock(cache_layout_->mutex);
  return cache_layout_->live;
}

std::unique_ptr<KVCache> Decoder::new_cache(int capacity, size_t max_bytes) const {
  return std::make_unique<KVCache>(cache_layout_, capacity, max_bytes);
}

void Decoder::run_step(StepResults results) {
  const size_t head = size_t(config_.vocab_size) * config_.hidden_size;
  const size_t work =
      step_.tokens().size() * num_block_weights_ + step_.logit_tokens().size() * head;
  const int workers = crew_.size_for(work);
  const double start = seconds_now();
  if (workers > 1) pool_.step_aside();
  ForwardPass pass{config_,    weights_, window_kinds_, kernels_, step_,     ropes_,
                   workspace_, pool_,    workers,       results,  screening_};
  pass.run();
  crew_.record(workers, work, seconds_now() - start, pool_.take_slept_seconds());
}

void Decoder::forward(std::span<const Sequence> sequences, float* logits,
                      const std::function<void()>& between_steps) {
  run(sequences, {logits, nullptr}, between_steps);
}

void Decoder::choose(std::span<const Sequence> sequences, int32_t* tokens,
                     const std::function<void()>& between_steps) {
  run(sequences, {nullptr, tokens}, between_steps);
}

int Decoder::continue_texts(std::span<KVCache* const> caches, std::span<const int32_t> tokens,
                            int steps, std::span<const int32_t> ends,
                            const std::function<bool()>& stop, const Draw& draw, int32_t* chosen) {
  std::vector<Sequence> sequences(caches.size());
  std::vector<float> logits(draw ? caches.size() * size_t(config_.vocab_size) : 0);
  const auto is_end = [&](int32_t token) {
    return std::find(ends.begin(), ends.end(), token) != ends.end();
  };
  for (int step = 0; step < steps; ++step) {
    const int32_t* before = step == 0 ? tokens.data() : chosen + (step - 1) * caches.size();
    for (size_t index = 0; index < caches.size(); ++index)
      sequences[index] = {caches[index], {before + index, 1}, {}, nullptr, 1};
    int32_t* row = chosen + step * caches.size();
    try {
      if (draw) {
        forward(sequences, logits.data(), [] {});
        draw(step, logits.data(), row);
      } else {
        choose(sequences, row, [] {});
      }
    } catch (const GenerationError&) {
      // Whoever asks for the next token alone hears of it.
      if (step == 0) throw;
      return step;
    }
    if (std::any_of(row, row + caches.size(), is_end) || stop()) return step + 1;
  }
  return steps;
}

Screening Decoder::screening() const {
  const std::lock_guard lock(mutex_);
  return screening_;
}

void Decoder::run(std::span<const Sequence> sequences, StepResults results,
                  const std::function<void()>& between_steps) {
  const std::lock_guard lock(mutex_);
  check_request(sequences, *cache_layout_, config_.vocab_size);
  CacheHold hold(sequences);
  std::vector<int> done(sequences.size(), 0);
  try {
    for (bool first = true; step_.take(sequences, done); first = false) {
      if (!first) between_steps();
      run_step(results);
      step_.commit();
      const size_t done_tokens = step_.logit_tokens().size();
      if (results.logits != nullptr) results.logits += done_tokens * size_t(config_.vocab_size);
      if (results.tokens != nullptr) results.tokens += done_tokens;
    }
  } catch (...) {
    hold.undo();
    throw;
  }
}

DecoderMemory Decoder::memory() const {
  const std::lock_guard lock(mutex_);
  size_t vector_entries = weights_.final_norm.size();
  for (const BlockWeights& block : weights_.blocks) {
    for (const auto* norm : block.norms()) vector_entries += norm->size();
    for (const Linear* linear : block.linears()) vector_entries += linear->bias.size();
  }
  size_t scratch = workspace_.size_bytes() + step_.size_bytes();
  for (const RopeTable& rope : ropes_) scratch += rope.size_bytes();
  return {weights_.mapped_bytes(),          resident_bytes(weight_ranges_),
          vector_entries * sizeof(float),   weights_.adapter_bytes(),
          cache_layout_->live_bytes.load(), scratch};
}

}  // namespace pliant
