// Units of a cache that become codes, and what that means for cuts and copies.
#include <algorithm>
#include <cstring>

#include "engine/cache.h"

namespace pliant {

void KVCache::fold(int place, int group, int begin, int end) {
  for (int unit = begin; unit < end; ++unit)
    for (const bool is_key : {true, false}) {
      const std::byte* rows = is_key ? keys(place, group) : values(place, group);
      rows += row_of(unit * kCacheUnit) * row_bytes();
      encode_unit(reinterpret_cast<const uint16_t*>(rows), layout_->bits, layout_->head_dim, is_key,
                  coded(place, group, is_key) + size_t(unit) * unit_bytes());
    }
}

Folding KVCache::cut_to(int length) const {
  if (layout_->bits == 0 || length == 0) return {};
  const int next_unit = length / kCacheUnit;  // of the token that would follow
  const int wanted = std::max(0, next_unit - layout_->window_units());
  Folding left = folding_;
  if (left.folded <= wanted) return left;
  left.first_row_unit = std::min(left.first_row_unit, next_unit);
  left.folded = std::max(wanted, left.first_row_unit);
  return left;
}

int KVCache::exact_from() const {
  if (folding_.first_row_unit == 0) return 0;
  return std::min(length_, (folding_.first_row_unit + layout_->window_units()) * kCacheUnit);
}

void KVCache::restore_row_unit(size_t stripe, int unit) {
  std::byte* rows =
      data_.data() + (stripe * size_t(num_rows_) + row_of(unit * kCacheUnit)) * row_bytes();
  decode_unit(codes_.data() + stripe * stripe_codes() + size_t(unit) * unit_bytes(), layout_->bits,
              layout_->head_dim, stripe % 2 == 0, 0, kCacheUnit, reinterpret_cast<uint16_t*>(rows));
}

void KVCache::begin_copy(KVCache& to, int length) const {
  if (layout_->bits == 0 || length == 0) return;
  Folding left = cut_to(length);
  // A shorter cache may have no place for codes of entries that lie within its window.
  left.folded = std::min(left.folded, to.layout_->num_coded(to.capacity_));
  const int last = (length - 1) / kCacheUnit;
  left.first_row_unit =
      std::min(left.folded, std::max(left.first_row_unit, last - to.ring_units() + 1));
  to.folding_ = left;
}

void KVCache::copy_stripe(size_t from, KVCache& to, size_t to_stripe, int length) const {
  if (length == 0) return;
  const size_t size = row_bytes();
  const std::byte* rows = data_.data() + from * size_t(num_rows_) * size;
  std::byte* to_rows = to.data_.data() + to_stripe * size_t(to.num_rows_) * size;
  if (layout_->bits == 0) {
    std::memcpy(to_rows, rows, size_t(length) * size);
    if (scales_.size() > 0)
      std::copy_n(scales_.data() + from * size_t(capacity_), length,
                  to.scales_.data() + to_stripe * size_t(to.capacity_));
    return;
  }
  const uint8_t* codes = codes_.data() + from * stripe_codes();
  uint8_t* to_codes = to.codes_.data() + to_stripe * to.stripe_codes();
  if (to.folding_.folded > 0)
    std::memcpy(to_codes, codes, size_t(to.folding_.folded) * unit_bytes());
  for (int unit = to.folding_.first_row_unit; unit * kCacheUnit < length; ++unit) {
    std::byte* unit_rows = to_rows + to.row_of(unit * kCacheUnit) * size;
    if (unit >= folding_.first_row_unit) {
      std::memcpy(unit_rows, rows + row_of(unit * kCacheUnit) * size, kCacheUnit * size);
    } else {
      decode_unit(codes + size_t(unit) * unit_bytes(), layout_->bits, layout_->head_dim,
                  from % 2 == 0, 0, kCacheUnit, reinterpret_cast<uint16_t*>(unit_rows));
    }
  }
}

KVCache::Mark KVCache::mark(int coming) const {
  Mark mark{length_, folding_, {}};
  if (layout_->bits == 0 || length_ == 0) return mark;
  const int last = (length_ - 1) / kCacheUnit, end = (length_ + coming - 1) / kCacheUnit;
  if (end > last + 1) mark.rows.assign(data_.data(), data_.data() + data_.size());
  return mark;
}

void KVCache::undo(const Mark& mark, int coming) {
  truncate(std::min(mark.length, length_));
  folding_ = mark.folding;
  if (layout_->bits == 0 || length_ == 0) return;
  if (!mark.rows.empty()) {
    std::copy(mark.rows.begin(), mark.rows.end(), data_.data());
    return;
  }
  const int end = (mark.length + coming - 1) / kCacheUnit;
  folding_.first_row_unit = std::max(folding_.first_row_unit, end - ring_units() + 1);
}

}  // namespace pliant
