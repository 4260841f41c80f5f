#include "engine/cache.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/errors.h"

namespace pliant {

size_t CacheLayout::num_groups() const {
  size_t count = 0;
  for (int of_block : groups) count += of_block;
  return count;
}

int CacheLayout::num_rows(int capacity) const {
  if (bits == 0) return capacity;
  return std::min(window_units() + 2, ceil_div(capacity, kCacheUnit)) * kCacheUnit;
}

int CacheLayout::num_coded(int capacity) const {
  return bits == 0 ? 0 : std::max(0, (capacity - 1) / kCacheUnit - window_units());
}

size_t CacheLayout::num_bytes(int capacity) const {
  const size_t rows = size_t(num_rows(capacity)) * row_bytes();
  const size_t scales = num_scales() * size_t(capacity) * sizeof(float);
  const size_t of_groups = rows + scales + size_t(num_coded(capacity)) * unit_bytes();
  return 2 * num_groups() * of_groups + size_t(capacity) * (2 * sizeof(int32_t) + sizeof(float));
}

KVCache::KVCache(std::shared_ptr<const CacheLayout> layout, int capacity, size_t max_bytes)
    : layout_(std::move(layout)), max_bytes_(max_bytes) {
  if (capacity < 1)
    throw UsageError("A cache holds at least 1 token; " + std::to_string(capacity) +
                     " were asked for.");
  if (capacity > layout_->max_context)
    throw UsageError("A cache of " + std::to_string(capacity) +
                     " tokens was asked for; this model reads at most " +
                     std::to_string(layout_->max_context) + ".");
  if (max_bytes > 0 && max_bytes < layout_->num_bytes(1))
    throw GenerationError("One token takes " + std::to_string(layout_->num_bytes(1)) +
                          " bytes of cache and " + std::to_string(max_bytes) +
                          " bytes are allowed; allow more, or keep fewer blocks or groups.");
  capacity_ = capacity;
  if (max_bytes > 0 && layout_->num_bytes(capacity) > max_bytes) {
    int fits = 1, too_many = capacity;
    while (too_many - fits > 1) {
      const int middle = fits + (too_many - fits) / 2;
      (layout_->num_bytes(middle) <= max_bytes ? fits : too_many) = middle;
    }
    capacity_ = fits;
  }
  size_t before = 0;
  for (int count : layout_->groups) {
    first_group_.push_back(before);
    before += count;
  }
  num_rows_ = layout_->num_rows(capacity_);
  const size_t stripes = 2 * layout_->num_groups();
  data_.reserve(stripes * size_t(num_rows_) * row_bytes());
  codes_.reserve(stripes * stripe_codes());
  scales_.reserve(stripes * size_t(capacity_) * layout_->num_scales());
  positions_.reserve(capacity_);
  tokens_.reserve(capacity_);
  const std::lock_guard lock(layout_->mutex);
  layout_->live.push_back(this);
  layout_->live_bytes += num_bytes();
}

KVCache::~KVCache() {
  const std::lock_guard lock(layout_->mutex);
  std::erase(layout_->live, this);
  layout_->live_bytes -= num_bytes();
}

void KVCache::set_log_weights(std::span<const float> log_weights) {
  if (log_weights.size() != size_t(length_))
    throw UsageError(std::to_string(log_weights.size()) + " log-weights for " +
                     std::to_string(length_) + " cached tokens; give one for each.");
  for (float weight : log_weights)
    if (!std::isfinite(weight)) throw UsageError("A log-weight is not finite; give finite ones.");
  log_weights_.reserve(capacity_);
  std::copy(log_weights.begin(), log_weights.end(), log_weights_.data());
  std::fill(log_weights_.data() + length_, log_weights_.data() + capacity_, 0.0f);
}

void KVCache::append(int count) {
  for (int entry = length_; entry < length_ + count; ++entry) {
    const bool rises = entry == 0 || positions_[entry] > positions_[entry - 1];
    if (num_ascending_ == entry && rises) ++num_ascending_;
  }
  length_ += count;
  if (layout_->bits == 0 || length_ == 0) return;
  const int last = length_ - 1;
  folding_.folded = folded_at(last);
  folding_.first_row_unit = std::max(folding_.first_row_unit, last / kCacheUnit - ring_units() + 1);
}

void KVCache::truncate(int length) {
  if (length < 0 || length > length_)
    throw UsageError("A cache of " + std::to_string(length_) + " tokens cannot be cut to " +
                     std::to_string(length) + ".");
  const Folding left = cut_to(length);
  if (left.first_row_unit < folding_.first_row_unit && length % kCacheUnit != 0)
    for (size_t index = 0; index < 2 * layout_->num_groups(); ++index)
      restore_row_unit(index, left.first_row_unit);
  folding_ = left;
  length_ = length;
  num_ascending_ = std::min(num_ascending_, length);
  if (log_weights_.size() > 0)
    std::fill(log_weights_.data() + length, log_weights_.data() + capacity_, 0.0f);
}

std::unique_ptr<KVCache> KVCache::copy(int length, int capacity) const {
  if (length < 0 || length > length_ || length > capacity)
    throw UsageError(std::to_string(length) + " tokens of a cache of " + std::to_string(length_) +
                     " cannot be copied into one for " + std::to_string(capacity) + ".");
  auto made = std::make_unique<KVCache>(layout_, capacity, 0);
  begin_copy(*made, length);
  for (size_t index = 0; index < 2 * layout_->num_groups(); ++index)
    copy_stripe(index, *made, index, length);
  end_copy(*made, length);
  return made;
}

void KVCache::end_copy(KVCache& to, int length) const {
  const Folding folding = to.folding_;
  std::copy_n(positions_.data(), length, to.positions_.data());
  std::copy_n(tokens_.data(), length, to.tokens_.data());
  to.append(length);
  to.folding_ = folding;
  if (log_weights_.size() > 0) to.set_log_weights({log_weights_.data(), size_t(length)});
}

}  // namespace pliant
