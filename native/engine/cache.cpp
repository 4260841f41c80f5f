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

size_t CacheLayout::entry_bytes() const {
  const size_t group_bytes = row_bytes() + num_scales() * sizeof(float);
  return 2 * num_groups() * group_bytes + 2 * sizeof(int32_t) + sizeof(float);
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
  const size_t entry_bytes = layout_->entry_bytes();
  if (max_bytes > 0 && max_bytes / entry_bytes == 0)
    throw GenerationError("One token takes " + std::to_string(entry_bytes) +
                          " bytes of cache and " + std::to_string(max_bytes) +
                          " bytes are allowed; allow more, or keep fewer blocks or groups.");
  capacity_ = capacity;
  if (max_bytes > 0) capacity_ = int(std::min<size_t>(capacity, max_bytes / entry_bytes));
  size_t before = 0;
  for (int count : layout_->groups) {
    first_group_.push_back(before);
    before += count;
  }
  const size_t rows = 2 * layout_->num_groups() * capacity_;
  data_.reserve(rows * row_bytes());
  scales_.reserve(rows * layout_->num_scales());
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
}

void KVCache::truncate(int length) {
  if (length < 0 || length > length_)
    throw UsageError("A cache of " + std::to_string(length_) + " tokens cannot be cut to " +
                     std::to_string(length) + ".");
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
  const auto copy_used = [&](auto& to, const auto& from, size_t row_size) {
    const size_t stripe = size_t(capacity_) * row_size, wider = size_t(capacity) * row_size;
    if (length == 0 || stripe == 0) return;
    for (size_t index = 0; index < from.size() / stripe; ++index)
      std::copy_n(from.data() + index * stripe, size_t(length) * row_size,
                  to.data() + index * wider);
  };
  copy_used(made->data_, data_, row_bytes());
  copy_used(made->scales_, scales_, 1);
  std::copy_n(positions_.data(), length, made->positions_.data());
  std::copy_n(tokens_.data(), length, made->tokens_.data());
  made->append(length);
  if (log_weights_.size() > 0) made->set_log_weights({log_weights_.data(), size_t(length)});
  return made;
}

}  // namespace pliant
