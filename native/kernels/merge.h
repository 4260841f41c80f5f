// Planes to codes: the bit work that every vector path shares.
//
// In a plane vector, bit s of a byte belongs to column 4 * s + byte % 4 of its chunk. `merge` turns
// the vectors of up to four planes into "carriers": bytes cut into slots of 1, 2 or 4 bits, where
//
//     carrier c, slot beginning at bit b  holds the code of field s = b + c % slot
//
// so that one AND isolates the codes of a field, in place. It is two thirds of a bit transpose, in
// log2 steps; shifts are by 16-bit lanes, and what they carry from one byte into its neighbour is
// always replaced by the select that follows.
//
// Everything here is in an anonymous namespace: each path file compiles its own copy.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/kernels.h"

#define PLIANT_INLINE inline __attribute__((always_inline))
// On the lambdas of unrolled loops: inlined late, gcc would keep the arrays they capture in memory.
#define PLIANT_BODY __attribute__((always_inline))

namespace pliant {
namespace {

// Calls body(constant 0), body(constant 1), ... : shift counts and registers must be constants.
template <int kCount, typename Body>
PLIANT_INLINE void unroll(Body&& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// For each set of lanes, as bits, the places of those lanes of kBytes bytes in front.
template <int kLanes, int kBytes>
constexpr auto kPackedLanes = [] {
  std::array<std::array<uint8_t, size_t(kLanes) * kBytes>, size_t{1} << kLanes> orders{};
  for (size_t lanes = 0; lanes < orders.size(); ++lanes) {
    size_t next = 0;
    for (size_t lane = 0; lane < size_t(kLanes); ++lane) {
      if ((lanes >> lane & 1) == 0) continue;
      for (size_t byte = 0; byte < kBytes; ++byte)
        orders[lanes][next++] = uint8_t(lane * kBytes + byte);
    }
  }
  return orders;
}();

constexpr int kFields = 8;        // fields of four columns in a chunk
constexpr int kNibblePlanes = 4;  // planes merged at once at most

constexpr int slot_bits(int num_planes) { return num_planes > 2 ? 4 : num_planes; }
constexpr int low_bits(int count) { return (1 << count) - 1; }

// Byte-wise move of bit `kFrom` to bit `kTo`; other bits are to be masked away.
template <typename Simd, int kFrom, int kTo>
PLIANT_INLINE typename Simd::Int move_bit(typename Simd::Int value) {
  if constexpr (kFrom > kTo) return Simd::template shift_right16<kFrom - kTo>(value);
  if constexpr (kFrom < kTo) return Simd::template shift_left16<kTo - kFrom>(value);
  return value;
}

// Slots twice as wide out of a more and a less significant vector of slots of kBits; `mask` has the
// even ones. even: (low, high) of the even slots; odd: those of the odd ones.
template <typename Simd, int kBits>
PLIANT_INLINE void merge_slots(typename Simd::Int mask, typename Simd::Int high,
                               typename Simd::Int low, typename Simd::Int& even,
                               typename Simd::Int& odd) {
  if constexpr (requires { Simd::kExchanges; }) {
    // Where a select takes three instructions: exchange the bits that differ, six in all.
    const auto differing =
        Simd::bit_and(Simd::bit_xor(Simd::template shift_right16<kBits>(low), high), mask);
    odd = Simd::bit_xor(high, differing);
    even = Simd::bit_xor(low, Simd::template shift_left16<kBits>(differing));
  } else {
    even = Simd::select(mask, low, Simd::template shift_left16<kBits>(high));
    odd = Simd::select(mask, Simd::template shift_right16<kBits>(low), high);
  }
}

// Two-bit slots of a more and a less significant plane: even fields, then odd fields.
template <typename Simd>
PLIANT_INLINE void merge_pair(typename Simd::Int high, typename Simd::Int low,
                              typename Simd::Int (&carriers)[2]) {
  merge_slots<Simd, 1>(Simd::set8(0x55), high, low, carriers[0], carriers[1]);
}

// Reads one vector of each plane at `offset`, most significant plane first.
template <typename Simd, int kPlanes>
PLIANT_INLINE void merge(const uint8_t* const* planes, size_t offset,
                         typename Simd::Int (&carriers)[slot_bits(kPlanes)]) {
  using Int = typename Simd::Int;
  if constexpr (kPlanes == 1) {
    carriers[0] = Simd::load_bytes(planes[0] + offset);
  } else if constexpr (kPlanes == 2) {
    merge_pair<Simd>(Simd::load_bytes(planes[0] + offset), Simd::load_bytes(planes[1] + offset),
                     carriers);
  } else {
    const auto low_pair = Simd::set8(0x33);
    Int low[2];
    merge_pair<Simd>(Simd::load_bytes(planes[kPlanes - 2] + offset),
                     Simd::load_bytes(planes[kPlanes - 1] + offset), low);
    if constexpr (kPlanes == 3) {
      const Int top = Simd::load_bytes(planes[0] + offset);
      carriers[0] = Simd::select(low_pair, low[0], move_bit<Simd, 0, 2>(top));
      carriers[1] = Simd::select(low_pair, low[1], move_bit<Simd, 1, 2>(top));
      carriers[2] = Simd::select(low_pair, move_bit<Simd, 2, 0>(low[0]), top);
      carriers[3] = Simd::select(low_pair, move_bit<Simd, 2, 0>(low[1]), move_bit<Simd, 3, 2>(top));
    } else {
      Int high[2];
      merge_pair<Simd>(Simd::load_bytes(planes[0] + offset), Simd::load_bytes(planes[1] + offset),
                       high);
      merge_slots<Simd, 2>(low_pair, high[0], low[0], carriers[0], carriers[2]);
      merge_slots<Simd, 2>(low_pair, high[1], low[1], carriers[1], carriers[3]);
    }
  }
}

// The bytes code << kTo of field `kField`, out of carriers of kPlanes <= 4 planes.
template <typename Simd, int kPlanes, int kField, int kTo>
PLIANT_INLINE typename Simd::Int field_codes(
    const typename Simd::Int (&carriers)[slot_bits(kPlanes)]) {
  constexpr int kCarrier = kField % slot_bits(kPlanes);
  return Simd::bit_and(move_bit<Simd, kField - kCarrier, kTo>(carriers[kCarrier]),
                       Simd::set8(low_bits(kPlanes) << kTo));
}

// Unsigned codes << kShift of a whole chunk, for any number of planes: body(field, bytes).
template <typename Simd, int kPlanes, int kShift, typename Body>
PLIANT_INLINE void for_each_field(const uint8_t* const* planes, size_t offset, Body&& body) {
  using Int = typename Simd::Int;
  if constexpr (kPlanes <= kNibblePlanes) {
    Int carriers[slot_bits(kPlanes)];
    merge<Simd, kPlanes>(planes, offset, carriers);
    unroll<kFields>([&](auto field) PLIANT_BODY {
      body(field, field_codes<Simd, kPlanes, field, kShift>(carriers));
    });
  } else {
    constexpr int kHighPlanes = kPlanes - kNibblePlanes;
    Int high[slot_bits(kHighPlanes)], low[kNibblePlanes];
    merge<Simd, kHighPlanes>(planes, offset, high);
    merge<Simd, kNibblePlanes>(planes + kHighPlanes, offset, low);
    unroll<kFields>([&](auto field) PLIANT_BODY {
      body(field, Simd::bit_or(field_codes<Simd, kHighPlanes, field, kShift + kNibblePlanes>(high),
                               field_codes<Simd, kNibblePlanes, field, kShift>(low)));
    });
  }
}

// Calls body(constant num_planes), so that each plane count is its own compiled loop.
template <typename Body>
PLIANT_INLINE void with_planes(int num_planes, Body&& body) {
  switch (num_planes) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 6:
      return body(std::integral_constant<int, 6>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
    case 8:
      return body(std::integral_constant<int, 8>{});
  }
}

// dots[token] = the codes of one group where the bits of one plane are set, added up. `bits` are
// those of the first row; `activations` has a row of `stride` codes for each token.
template <typename Simd, int kTokens>
PLIANT_INLINE void dot_plane(const uint8_t* bits, int group, int chunks, const int8_t* activations,
                             size_t stride, typename Simd::Int (&dots)[kTokens]) {
  using Int = typename Simd::Int;
  unroll<kTokens>([&](auto token) PLIANT_BODY { dots[token] = Simd::set32(0); });
  const int chunk_end = chunks < 2 * group + 2 ? chunks : 2 * group + 2;
  for (int chunk = 2 * group; chunk < chunk_end; ++chunk) {
    Int fields[kFields];
    for_each_field<Simd, 1, 0>(&bits, size_t(chunk) * kChunkBytes,
                               [&](auto field, Int bytes) PLIANT_BODY { fields[field] = bytes; });
    Simd::template dot_fields<kTokens>(fields, activations + size_t(chunk) * kChunkColumns, stride,
                                       dots);
  }
}

}  // namespace
}  // namespace pliant
