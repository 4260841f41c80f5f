// Attention over every type of cache. Coded entries are made floats a unit at a time, written once
// for every vector width; their values are those of coded_value (cache_codes.h), to the last bit.
#pragma once

#include "kernels/attention.h"
#include "kernels/cache_codes.h"

namespace pliant {
namespace {

template <typename Simd, int kBits>
struct CodedUnit {
  using Float = typename Simd::Float;
  static constexpr int kLowBits = kBits == 4 ? 4 : 2;  // of the fields that lie together
  static constexpr int kPerByte = 8 / kLowBits;
  static constexpr int kRows = kCacheUnit / kPerByte;

  // entries[kCacheUnit][head_dim] of the unit; scale_at(entry, channel) and minimum_at the same
  // give pointers to their floats, load(pointer) a vector of them.
  template <typename ScaleAt, typename MinimumAt, typename Load>
  static void decode(const uint8_t* unit, int head_dim, float* entries, ScaleAt&& scale_at,
                     MinimumAt&& minimum_at, Load&& load) {
    const size_t size = size_t(head_dim);
    for (int row = 0; row < kRows; ++row) {
      const uint8_t* low = unit + size_t(row) * size;
      const uint8_t* high = unit + size_t(kRows + row % 8) * size;  // of three bits
      int d = 0;
      for (; d + Simd::kLanes <= head_dim; d += Simd::kLanes) {
        const auto bytes = Simd::load_uint8(low + d);
        auto top = bytes;
        if constexpr (kBits == 3) {
          top = Simd::load_uint8(high + d);
          if (row >= 8) top = Simd::template shift_right32<1>(top);
        }
        unroll<kPerByte>([&](auto field) PLIANT_BODY {
          constexpr int kField = decltype(field)::value;
          auto code = Simd::bit_and(Simd::template shift_right32<kField * kLowBits>(bytes),
                                    Simd::set32((1 << kLowBits) - 1));
          if constexpr (kBits == 3) {
            // Entry row + 16 field is bit 2 field + row / 8 of its byte.
            const auto bit =
                Simd::bit_and(Simd::template shift_right32<2 * kField>(top), Simd::set32(1));
            code = Simd::bit_or(code, Simd::template shift_left32<2>(bit));
          }
          const int entry = row + kField * kRows;
          Simd::store(entries + size_t(entry) * size + d,
                      Simd::fma(Simd::to_float(code), load(scale_at(entry, d)),
                                load(minimum_at(entry, d))));
        });
      }
      for (; d < head_dim; ++d)
        for (int entry = row; entry < kCacheUnit; entry += kRows)
          entries[size_t(entry) * size + size_t(d)] =
              std::fma(float(code_of(unit, kBits, head_dim, entry, d)), *scale_at(entry, d),
                       *minimum_at(entry, d));
    }
  }

  // `scales` has room for the scales of a unit.
  static void decode_keys(const uint8_t* unit, int head_dim, float* scales, float* entries) {
    const int count = kCacheUnit / kCacheGroup * 2 * head_dim;
    widen(unit_scales(unit, kBits, head_dim), count, scales);
    decode(
        unit, head_dim, entries,
        [&](int entry, int d)
            PLIANT_BODY { return scales + key_scale_place(head_dim, entry, d).scale; },
        [&](int entry, int d)
            PLIANT_BODY { return scales + key_scale_place(head_dim, entry, d).minimum; },
        [](const float* p) PLIANT_BODY { return Simd::load(p); });
  }

  static void decode_values(const uint8_t* unit, int head_dim, float* scales, float* entries) {
    const int count = ceil_div(head_dim, kCacheGroup) * 2 * kCacheUnit;
    widen(unit_scales(unit, kBits, head_dim), count, scales);
    decode(
        unit, head_dim, entries,
        [&](int entry, int d) PLIANT_BODY { return scales + value_scale_place(entry, d).scale; },
        [&](int entry, int d) PLIANT_BODY { return scales + value_scale_place(entry, d).minimum; },
        [](const float* p) PLIANT_BODY { return Simd::set(*p); });
  }

  static void widen(const uint16_t* halves, int count, float* floats) {
    for_each_vector<Simd>(count, [&](int i, auto rest) PLIANT_BODY {
      if constexpr (std::is_same_v<decltype(rest), int>) {
        Simd::store_first(floats + i, Simd::load_half_first(halves + i, rest), rest);
      } else {
        Simd::store(floats + i, Simd::load_half(halves + i));
      }
    });
  }
};

// Keys and values of the unit that begins at entry `begin`, one behind the other, in
// `call.decoded`.
template <typename Simd, int kBits>
void decode_block(const AttentionCall& call, int begin) {
  const size_t unit = size_t(begin / kCacheUnit) * coded_unit_bytes(kBits, call.head_dim);
  const size_t size = size_t(kCacheUnit) * size_t(call.head_dim);
  float* scales = call.decoded + 2 * size;
  CodedUnit<Simd, kBits>::decode_keys(call.coded_keys + unit, call.head_dim, scales, call.decoded);
  CodedUnit<Simd, kBits>::decode_values(call.coded_values + unit, call.head_dim, scales,
                                        call.decoded + size);
}

template <typename Simd>
void decode_block(const AttentionCall& call, int begin) {
  switch (call.coded_bits) {
    case 2:
      return decode_block<Simd, 2>(call, begin);
    case 3:
      return decode_block<Simd, 3>(call, begin);
    case 4:
      return decode_block<Simd, 4>(call, begin);
  }
}

// The blocks of a coded cache: codes are decoded once for all rows.
template <typename Simd>
void attend_coded(const AttentionCall& call) {
  const AttentionRange range = begin_rows(call);
  const size_t size = size_t(kCacheUnit) * size_t(call.head_dim);
  typename Attention<Simd, float>::Block decoded;
  typename Attention<Simd, uint16_t>::Block recent;
  for (int begin = range.begin; begin < range.end; begin += kAttentionBlock) {
    if (begin < call.folded) {
      decode_block<Simd>(call, begin);
      Attention<Simd, float>::attend_at(call, {begin, range.end}, call.decoded, call.decoded + size,
                                        decoded);
      continue;
    }
    const size_t offset = size_t(begin / kCacheUnit % call.ring_units) * size;
    Attention<Simd, uint16_t>::attend_at(
        call, {begin, range.end}, static_cast<const uint16_t*>(call.keys) + offset,
        static_cast<const uint16_t*>(call.values) + offset, recent);
  }
}

template <typename Simd>
void attend(const AttentionCall& call) {
  if (call.coded_bits > 0) return attend_coded<Simd>(call);
  switch (call.type) {
    case CacheType::kFloat32:
      return Attention<Simd, float>::attend(call);
    case CacheType::kFloat16:
      return Attention<Simd, uint16_t>::attend(call);
    case CacheType::kInt8:
      return Attention<Simd, int8_t>::attend(call);
  }
}

}  // namespace
}  // namespace pliant
