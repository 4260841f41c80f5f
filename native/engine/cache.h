// The keys and values of one sequence.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "kernels/cache_codes.h"
#include "kernels/kernels.h"

namespace pliant {

class KVCache;

// What all caches of one decoder have in common, and those that are alive.
struct CacheLayout {
  CacheType type = CacheType::kFloat16;
  int bits = 0;    // of entries older than the window, in coded units; 0: all are of `type`
  int window = 0;  // entries, whole units
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
  int window_units() const { return window / kCacheUnit; }
  // Of a cache for `capacity` tokens, for the keys or values of one group: rows of `type` (with
  // bits, those of a ring of units), and units that may be coded.
  int num_rows(int capacity) const;
  int num_coded(int capacity) const;
  size_t unit_bytes() const { return bits == 0 ? 0 : coded_unit_bytes(bits, head_dim); }
  // All bytes: keys and values with their scales; token, position and log-weight of each entry.
  size_t num_bytes(int capacity) const;
};

// What of a cache is held as codes: the units before `folded`; fp16 rows are there from unit
// `first_row_unit` on, which is never behind it.
struct Folding {
  int folded = 0;
  int first_row_unit = 0;
};

// K and V of one sequence, per kept block and KV group `[capacity][head_dim]` (and `[capacity]`
// scales where they are int8), with the token, the original position and a log-weight for each
// entry: a weight w stands for exp(w) equal entries, which is what cache policies that merge
// entries need.
//
// With bits, entries go by units of kCacheUnit. A token of unit k sees the units before
// k - window_units() as codes, and the later ones as fp16 rows, which lie in a ring that has room
// for one unit more than that. So what a token sees depends on its place alone, and a cut of the
// last kCacheUnit entries or fewer finds everything that it needs.
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
  size_t num_bytes() const { return layout_->num_bytes(capacity_); }

  // The entries of one group of kept block `place`.
  std::byte* keys(int place, int group) {
    return data_.data() + stripe(place, group, 0) * size_t(num_rows_) * row_bytes();
  }
  std::byte* values(int place, int group) {
    return data_.data() + stripe(place, group, 1) * size_t(num_rows_) * row_bytes();
  }
  size_t row_bytes() const { return layout_->row_bytes(); }
  // The row of an entry among them.
  size_t row_of(int entry) const {
    if (layout_->bits == 0) return size_t(entry);
    return size_t(entry / kCacheUnit % ring_units() * kCacheUnit + entry % kCacheUnit);
  }
  int ring_units() const { return num_rows_ / kCacheUnit; }
  // Their coded units; nullptr without bits.
  uint8_t* coded(int place, int group, bool is_key) {
    return codes_.data() + stripe(place, group, is_key ? 0 : 1) * stripe_codes();
  }
  // Units that are read as codes by the last token, and those that a token at `entry` reads so.
  int folded_units() const { return folding_.folded; }
  int folded_at(int entry) const {
    if (layout_->bits == 0) return 0;
    return std::max(folding_.folded, entry / kCacheUnit - layout_->window_units());
  }
  // Codes the units [begin, end) of one group.
  void fold(int place, int group, int begin, int end);
  // The shortest length to which this cache can be cut and be as if it had never been longer.
  int exact_from() const;
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
  // With bits, below exact_from(), entries of the window that only codes are left of stay codes,
  // and a unit that is begun again is decoded.
  void truncate(int length);
  // What undoes the appending of up to `coming` tokens exactly, wherever they end.
  struct Mark {
    int length = 0;
    Folding folding;
    std::vector<std::byte> rows;  // empty where the ring keeps them
  };
  Mark mark(int coming) const;
  void undo(const Mark& mark, int coming);
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
  // The number of the keys (0) or values (1) of a group.
  size_t stripe(int place, int group, int values) const {
    return 2 * (first_group_[place] + group) + values;
  }
  size_t stripe_codes() const { return size_t(layout_->num_coded(capacity_)) * unit_bytes(); }
  size_t unit_bytes() const { return layout_->unit_bytes(); }
  float* scales(int place, int group, int values) {
    if (scales_.size() == 0) return nullptr;
    return scales_.data() + stripe(place, group, values) * size_t(capacity_);
  }
  // What a cut to `length` leaves.
  Folding cut_to(int length) const;
  // The first `length` entries of stripe `from` into stripe `to_stripe` of `to`, whose folding has
  // been set; it may be this cache.
  void copy_stripe(size_t from, KVCache& to, size_t to_stripe, int length) const;
  // The rows of a unit of one stripe, made anew from its codes.
  void restore_row_unit(size_t stripe, int unit);
  // The folding, and then the entries, tokens and positions of a cache of the first `length`.
  void begin_copy(KVCache& to, int length) const;
  void end_copy(KVCache& to, int length) const;

  std::shared_ptr<const CacheLayout> layout_;
  size_t max_bytes_ = 0;
  int capacity_ = 0;
  int length_ = 0;
  int num_ascending_ = 0;
  int num_rows_ = 0;  // of `type`, per stripe
  Folding folding_;
  std::vector<size_t> first_group_;  // of each kept block, counted over all blocks
  AlignedBuffer<std::byte> data_;
  AlignedBuffer<uint8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<int32_t> positions_;
  AlignedBuffer<int32_t> tokens_;
  AlignedBuffer<float> log_weights_;
  std::atomic<bool> busy_ = false;
};

}  // namespace pliant
