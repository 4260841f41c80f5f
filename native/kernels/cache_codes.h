// Keys and values of a few bits: how a whole unit of cache entries is rounded and packed.
//
// A unit is kCacheUnit entries of one KV group. Keys are rounded along entries: each channel of
// kCacheGroup entries has a scale and a minimum of its own, because a few channels of keys are
// large in all entries. Values are rounded along channels: kCacheGroup channels of one entry share
// theirs (KIVI, Liu et al. 2024, arXiv:2402.02750). With codes c of 2, 3 or 4 bits
//     x = fma(c, scale, minimum),   scale and minimum stored as fp16.
//
// A coded unit of head_dim channels is
//     fields of bits 0 and 1 (4 bits: 0 to 3), rows of head_dim bytes: row r of 16 holds entries
//       r + 16 i at bits 2 i (4 bits: row r of 32, entries r + 32 i at bits 4 i)
//     with 3 bits then bit 2, 8 rows: row r holds entry r + 8 i at bit i
//     then fp16: keys [64 / 32][scale, minimum][head_dim],
//                values [ceil(head_dim / 32)][scale, minimum][64]
// so that any head_dim is packed without padding, and a vector of bytes is one entry's channels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/half.h"
#include "kernels/kernels.h"

namespace pliant {

constexpr int kCacheUnit = kAttentionBlock;
constexpr int kCacheGroup = 32;

// Bytes of the codes of a unit, without scales.
constexpr size_t unit_code_bytes(int bits, int head_dim) {
  return size_t(kCacheUnit) * size_t(bits) / 8 * size_t(head_dim);
}
// Bytes of a coded unit of keys or of values; the same for both, so that they lie alike.
constexpr size_t coded_unit_bytes(int bits, int head_dim) {
  const size_t of_keys = size_t(kCacheUnit / kCacheGroup) * 2 * size_t(head_dim);
  const size_t of_values = size_t(ceil_div(head_dim, kCacheGroup)) * 2 * size_t(kCacheUnit);
  return unit_code_bytes(bits, head_dim) + sizeof(uint16_t) * std::max(of_keys, of_values);
}

namespace {

// Where the scale of (entry, channel) lies among those of a unit, and how far behind it the
// minimum.
struct ScalePlace {
  size_t scale;
  size_t minimum;
};
[[maybe_unused]] ScalePlace key_scale_place(int head_dim, int entry, int channel) {
  const size_t scale = size_t(entry / kCacheGroup) * 2 * size_t(head_dim) + size_t(channel);
  return {scale, scale + size_t(head_dim)};
}
[[maybe_unused]] ScalePlace value_scale_place(int entry, int channel) {
  const size_t scale = size_t(channel / kCacheGroup) * 2 * kCacheUnit + size_t(entry);
  return {scale, scale + kCacheUnit};
}

[[maybe_unused]] int code_of(const uint8_t* unit, int bits, int head_dim, int entry, int channel) {
  const auto byte = [&](int row) { return unit[size_t(row) * size_t(head_dim) + size_t(channel)]; };
  if (bits == 4) return (byte(entry % 32) >> (entry / 32 * 4)) & 15;
  const int low = (byte(entry % 16) >> (entry / 16 * 2)) & 3;
  return bits == 2 ? low : low | ((byte(16 + entry % 8) >> (entry / 8)) & 1) << 2;
}

[[maybe_unused]] void set_code(uint8_t* unit, int bits, int head_dim, int entry, int channel,
                               int code) {
  const auto add = [&](int row, int value) {
    uint8_t& byte = unit[size_t(row) * size_t(head_dim) + size_t(channel)];
    byte = uint8_t(byte | value);
  };
  if (bits == 4) return add(entry % 32, code << (entry / 32 * 4));
  add(entry % 16, (code & 3) << (entry / 16 * 2));
  if (bits == 3) add(16 + entry % 8, code >> 2 << (entry / 8));
}

[[maybe_unused]] const uint16_t* unit_scales(const uint8_t* unit, int bits, int head_dim) {
  return reinterpret_cast<const uint16_t*>(unit + unit_code_bytes(bits, head_dim));
}

// One key or value of a coded unit.
[[maybe_unused]] float coded_value(const uint8_t* unit, int bits, int head_dim, bool is_key,
                                   int entry, int channel) {
  const uint16_t* scales = unit_scales(unit, bits, head_dim);
  const ScalePlace place =
      is_key ? key_scale_place(head_dim, entry, channel) : value_scale_place(entry, channel);
  return std::fma(float(code_of(unit, bits, head_dim, entry, channel)),
                  half_to_float(scales[place.scale]), half_to_float(scales[place.minimum]));
}

}  // namespace

// Codes of the kCacheUnit fp16 entries `rows` [kCacheUnit][head_dim]. A group that holds a NaN or
// an infinity becomes NaN as a whole.
void encode_unit(const uint16_t* rows, int bits, int head_dim, bool is_key, uint8_t* unit);

// The entries [begin, end) of a coded unit as fp16 rows.
void decode_unit(const uint8_t* unit, int bits, int head_dim, bool is_key, int begin, int end,
                 uint16_t* rows);

}  // namespace pliant
