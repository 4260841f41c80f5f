// Caches that move to another decoder of the same model.
#include <algorithm>
#include <string>

#include "engine/cache.h"
#include "engine/errors.h"

namespace pliant {

std::unique_ptr<KVCache> KVCache::empty_for(std::shared_ptr<const CacheLayout> layout) const {
  auto cache = std::make_unique<KVCache>(std::move(layout), capacity_, max_bytes_);
  if (cache->capacity() < length_)
    throw GenerationError("A cache holds " + std::to_string(length_) + " tokens and its limit of " +
                          std::to_string(max_bytes_) + " bytes leaves room for " +
                          std::to_string(cache->capacity()) +
                          " of this subnet; shorten it, or switch to fewer blocks or groups.");
  return cache;
}

std::unique_ptr<KVCache> KVCache::kept_for(std::shared_ptr<const CacheLayout> layout) const {
  auto copy = empty_for(std::move(layout));
  const CacheLayout& wanted = copy->layout();
  begin_copy(*copy, length_);
  for (size_t place = 0; place < wanted.blocks.size(); ++place) {
    const auto found =
        std::find(layout_->blocks.begin(), layout_->blocks.end(), wanted.blocks[place]);
    const size_t from_place = size_t(found - layout_->blocks.begin());
    const int groups = found == layout_->blocks.end() ? 0 : layout_->groups[from_place];
    if (wanted.groups[place] > groups)
      throw UsageError("The cache has " + std::to_string(groups) + " groups of block " +
                       std::to_string(wanted.blocks[place]) + "; " +
                       std::to_string(wanted.groups[place]) + " are needed.");
    for (int group = 0; group < wanted.groups[place]; ++group)
      for (int values = 0; values < 2; ++values)
        copy_stripe(stripe(int(from_place), group, values), *copy,
                    copy->stripe(int(place), group, values), length_);
  }
  end_copy(*copy, length_);
  return copy;
}

void KVCache::exchange(KVCache& other) noexcept {
  // The lists name the caches by their place in memory, which stays.
  const std::scoped_lock lock(layout_->mutex, other.layout_->mutex);
  std::replace(layout_->live.begin(), layout_->live.end(), this, &other);
  std::replace(other.layout_->live.begin(), other.layout_->live.end(), &other, this);
  std::swap(layout_, other.layout_);
  std::swap(max_bytes_, other.max_bytes_);
  std::swap(capacity_, other.capacity_);
  std::swap(length_, other.length_);
  std::swap(num_ascending_, other.num_ascending_);
  std::swap(num_rows_, other.num_rows_);
  std::swap(folding_, other.folding_);
  std::swap(first_group_, other.first_group_);
  std::swap(data_, other.data_);
  std::swap(codes_, other.codes_);
  std::swap(scales_, other.scales_);
  std::swap(positions_, other.positions_);
  std::swap(tokens_, other.tokens_);
  std::swap(log_weights_, other.log_weights_);
}

}  // namespace pliant
