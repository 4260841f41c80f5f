// The keys and values of one sequence.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"

namespace pliant {

class KVCache;

// What all caches of one decoder have in common, and those that are alive.
struct CacheLayout {
  CacheType type = CacheType::kFloat16;
  int head_dim = 0;
  int max_context = 0;
  std::vector<int> blocks;  // the kept blocks, ascending indices of the dense model
  std::vector<int> groups;  // KV groups of each kept block; 0 where only its MLP is kept
  mutable std::atomic<size_t> live_bytes = 0;
  mutable std::mutex mutex;
  mutable std::vector<KVCache*> live;  // guarded by `mutex`

  // Bytes of the keys or values of one entry of one group, without their scale.
  size_t row_bytes() const {
    const size_t value_bytes = type == CacheType::kFloat32   ? 4
                               : type == CacheType::kFloat16 ? 2
                                                             : 1;
    return value_bytes * head_dim;
  }
  // Scales of the keys, or of the values, of one entry of one group.
  size_t num_scales() const { return type == CacheType::kInt8 ? 1 : 0; }
  size_t num_groups() const;  // of all blocks
  // Bytes of one entry: keys and values with their scales, token, position and log-weight.
  size_t entry_bytes() const;
};

// K and V of one sequence, per kept block and KV group `[capacity][head_dim]` (and `[capacity]`
// scales where they are int8), with the token, the original position and a log-weight for each
// entry: a weight w stands for exp(w) equal entries, which is what cache policies that merge
// entries need.
//
// All memory is reserved at once and resident only where entries were written.
class KVCache {
 public:
  // At most `max_bytes` are reserved (0: no limit), which may lower the capacity.
  KVCache(std::shared_ptr<const CacheLayout> layout, int capacity, size_t max_bytes);
  ~KVCache();
  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;

  const CacheLayout& layout() const { return *layout_; }
  int length() const { return length_; }
  int capacity() const { return capacity_; }
  size_t num_bytes() const { return layout_->entry_bytes() * capacity_; }

  // The entries of one group of kept block `place`.
  std::byte* keys(int place, int group) {
    return data_.data() + stripe(place, group, 0) * row_bytes();
  }
  std::byte* values(int place, int group) {
    return data_.data() + stripe(place, group, 1) * row_bytes();
  }
  size_t row_bytes() const { return layout_->row_bytes(); }
  // Their scales `[capacity]`; nullptr unless the cache is int8.
  float* key_scales(int place, int group) { return scales(place, group, 0); }
  float* value_scales(int place, int group) { return scales(place, group, 1); }

  // The position that follows the last entry.
  int next_position() const { return length_ == 0 ? 0 : positions_[length_ - 1] + 1; }
  // Whether positions rise from each of the first `entries` entries to the next.
  bool is_ascending(int entries) const { return num_ascending_ >= entries; }
  std::span<const int32_t> positions() const { return {positions_.data(), size_t(length_)}; }
  const int32_t* position_data() const { return positions_.data(); }
  std::span<const int32_t> tokens() const { return {tokens_.data(), size_t(length_)}; }
  // [capacity], or nullptr while all log-weights are 0.
  const float* log_weights() const { return log_weights_.data(); }

  void set_log_weights(std::span<const float> log_weights);  // [length]

  // Writes token and position of entry `entry`, which lies at or after length().
  void set_token(int entry, int32_t token, int position) {
    tokens_[entry] = token;
    positions_[entry] = position;
  }
  // Makes the `count` entries after the last one part of the cache.
  void append(int count);
  void truncate(int length);
  std::unique_ptr<KVCache> clone() const { return copy(length_, capacity_); }
  // The first `length` entries in a cache of their own, with room for `capacity`.
  std::unique_ptr<KVCache> copy(int length, int capacity) const;
  // An empty cache of another decoder for as many tokens, under the same limit of bytes.
  // GenerationError where that limit does not hold what is held here.
  std::unique_ptr<KVCache> empty_for(std::shared_ptr<const CacheLayout> layout) const;
  // The same entries for a decoder whose blocks and groups are all among those of this one.
  std::unique_ptr<KVCache> kept_for(std::shared_ptr<const CacheLayout> layout) const;
  // Takes the place of `other`, which takes that of this one; who holds them stays.
  void exchange(KVCache& other) noexcept;

  // Held by a forward pass, so that nothing changes the cache meanwhile.
  bool try_acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }
  bool is_busy() const { return busy_.load(std::memory_order_acquire); }

 private:
  // Entries before those of the keys (0) or values (1) of a group.
  size_t stripe(int place, int group, int values) const {
    return (2 * (first_group_[place] + group) + values) * size_t(capacity_);
  }
  float* scales(int place, int group, int values) {
    return scales_.size() == 0 ? nullptr : scales_.data() + stripe(place, group, values);
  }

  std::shared_ptr<const CacheLayout> layout_;
  size_t max_bytes_ = 0;
  int capacity_ = 0;
  int length_ = 0;
  int num_ascending_ = 0;
  std::vector<size_t> first_group_;  // of each kept block, counted over all blocks
  AlignedBuffer<std::byte> data_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<int32_t> positions_;
  AlignedBuffer<int32_t> tokens_;
  AlignedBuffer<float> log_weights_;
  std::atomic<bool> busy_ = false;
};

}  // namespace pliant
