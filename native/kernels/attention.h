// Attention of several query heads over one KV group, written once for every vector width.
//
// Entries are taken in blocks that begin at multiples of kAttentionBlock, whatever a row sees of
// them, and each sum runs over entries and columns in one fixed order. So a row's result is the
// same alone and beside others: decoding equals prefill to the last bit.
#pragma once

#include <limits>

#include "kernels/vectors.h"

namespace pliant {
namespace {

// Rows whose scores are held at the same time: 4 KiB, beside a block of keys in the first cache.
constexpr int kAttentionRows = 16;
// Products q.k that run at the same time: the latency of a multiply-add times the two begun a
// cycle.
constexpr int kAttentionSums = 8;
// Vectors of a value that are weighted together, three rows of them at a time.
constexpr int kValueVectors = 4;

// The entries that any row of a call sees, from the beginning of a block on.
struct AttentionRange {
  int begin = 0;
  int end = 0;
};

// That range, with rows that have gathered nothing yet.
inline AttentionRange begin_rows(const AttentionCall& call) {
  int begin = call.end, end = call.begin;
  for (int row = 0; row < call.num_rows; ++row) {
    AttentionRow& it = call.rows[row];
    begin = std::min(begin, it.begin), end = std::max(end, it.end);
    it.maximum = -std::numeric_limits<float>::infinity(), it.total = 0.0f;
    std::fill_n(it.output, call.head_dim, 0.0f);
  }
  begin = std::max(begin, call.begin) / kAttentionBlock * kAttentionBlock;
  return {begin, std::min(end, call.end)};
}

template <typename Simd, typename Element>
struct Attention {
  using Float = typename Simd::Float;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  static constexpr bool kScaled = sizeof(Element) == 1;
  static constexpr std::integral_constant<int, kLanes> kWhole{};

  // Scores, then weights, of some rows for the entries of one block from its first on.
  struct Block {
    int begin = 0;
    int size = 0;
    const void* keys = nullptr;  // of its first entry
    const void* values = nullptr;
    bool ahead = false;  // the next block lies behind this one
    alignas(64) float weights[kAttentionRows][kAttentionBlock];
    float rescale[kAttentionRows];  // of what a row gathered before
  };

  template <typename Count>
  static PLIANT_INLINE Float load(const Element* p, Count count) {
    constexpr bool kPart = std::is_same_v<Count, int>;
    if constexpr (sizeof(Element) == 4) return load_some<Simd>(p, count);
    if constexpr (sizeof(Element) == 2) {
      if constexpr (kPart) return Simd::load_half_first(p, count);
      return Simd::load_half(p);
    }
    if constexpr (sizeof(Element) == 1) {
      if constexpr (kPart) return Simd::load_int8_first(p, count);
      return Simd::load_int8(p);
    }
  }

  // The `entry`th entry of the block, of which the caller takes all from column `d` on.
  static PLIANT_INLINE const Element* entry_at(const AttentionCall& call, const void* entries,
                                               int entry, int d = 0) {
    return static_cast<const Element*>(entries) + size_t(entry) * size_t(call.head_dim) + d;
  }

  // Asks for the entries that lie one block behind those from `entry` on: a block is worked on for
  // about as long as memory takes, and the processor's own prefetching ends at each page.
  template <int kEntries>
  static PLIANT_INLINE void prefetch(const AttentionCall& call, const Block& block, int entry) {
    const size_t size = size_t(kEntries) * size_t(call.head_dim) * sizeof(Element);
    const auto ahead = [&](const void* entries) PLIANT_BODY {
      return reinterpret_cast<const char*>(entry_at(call, entries, entry + kAttentionBlock));
    };
    const char *keys = ahead(block.keys), *values = ahead(block.values);
    for (size_t line = 0; line < size; line += 64) {
      __builtin_prefetch(keys + line);
      __builtin_prefetch(values + line);
    }
  }

  // The products q.k of kRows rows with the block's keys; each key is loaded once for all of them.
  template <int kRows>
  static void multiply_keys(const AttentionCall& call, const AttentionRow* rows, int first,
                            Block& block) {
    constexpr int kEntries = kAttentionSums / kRows;
    const Element* keys = static_cast<const Element*>(block.keys);
    for (int i = 0; i < block.size; i += kEntries) {
      // Fewer rows are done with a block before it could arrive.
      if (kRows == 4 && first == 0 && block.ahead) prefetch<kEntries>(call, block, i);
      const Element* key[kEntries];
      Float dots[kAttentionSums / 4][4];
      unroll<kEntries>([&](auto entry) PLIANT_BODY {
        // Repeats the last entry beyond the end; those scores are not used.
        key[entry] = keys + size_t(std::min(i + entry, block.size - 1)) * size_t(call.head_dim);
      });
      unroll<kAttentionSums>([&](auto n) PLIANT_BODY { dots[n / 4][n % 4] = Simd::set(0.0f); });
      for_each_vector<Simd>(call.head_dim, [&](int d, auto count) PLIANT_BODY {
        Float query[kRows];
        unroll<kRows>([&](auto row) PLIANT_BODY {
          query[row] = load_some<Simd>(rows[first + row].query + d, count);
        });
        unroll<kEntries>([&](auto entry) PLIANT_BODY {
          const Float value = load(key[entry] + d, count);
          unroll<kRows>([&](auto row) PLIANT_BODY {
            constexpr int n = decltype(row)::value * kEntries + decltype(entry)::value;
            dots[n / 4][n % 4] = Simd::fma(query[row], value, dots[n / 4][n % 4]);
          });
        });
      });
      float sums[kAttentionSums];
      unroll<kAttentionSums / 4>([&](auto n) PLIANT_BODY { Simd::sum4(dots[n], sums + 4 * n); });
      unroll<kRows>([&](auto row) PLIANT_BODY {
        std::memcpy(block.weights[first + row] + i, sums + row * kEntries,
                    kEntries * sizeof(float));
      });
    }
  }

  static void multiply_keys(const AttentionCall& call, const AttentionRow* rows, int count,
                            Block& block) {
    int first = 0;
    for (; first + 4 <= count; first += 4) multiply_keys<4>(call, rows, first, block);
    if (first + 2 <= count) {
      multiply_keys<2>(call, rows, first, block);
      first += 2;
    }
    if (first < count) multiply_keys<1>(call, rows, first, block);
  }

  // The entries of a block that a row sees, but for its mask, and the vectors that hold them. All
  // others have weight zero and are not looked at.
  struct Seen {
    int begin, end;
    int first, last;  // whole vectors from entry `first` to before `last`
    bool all;         // of these vectors every entry

    Seen(const AttentionCall& call, const AttentionRow& row, const Block& block)
        : begin(std::clamp(row.begin - block.begin, 0, block.size)),
          end(std::clamp(std::min(row.end, call.end) - block.begin, begin, block.size)),
          first(begin / kLanes * kLanes),
          last(ceil_div(end, kLanes) * kLanes),
          all(row.visible == nullptr && first == begin && last == end) {}
  };

  // A vector of what the block's entries have from entry `i` of the block on.
  static PLIANT_INLINE Float load_of(const float* values, const Block& block, int i) {
    const float* from = values + block.begin + i;
    if (i + kLanes <= block.size) return Simd::load(from);
    return Simd::load_first(from, block.size - i);
  }

  // Scores from the products q.k; returns the largest of each lane, NaN left out.
  static Float score(const AttentionCall& call, const Block& block, const Seen& seen,
                     float* scores) {
    Float largest = Simd::set(kMinusInfinity);
    for (int i = seen.first; i < seen.last; i += kLanes) {
      Float score = Simd::mul(Simd::load(scores + i), Simd::set(call.scale));
      if constexpr (kScaled) score = Simd::mul(score, load_of(call.key_scales, block, i));
      if (call.softcap != 0.0f) {
        const Float ratio = Simd::div(score, Simd::set(call.softcap));
        score = Simd::mul(Simd::set(call.softcap), hyperbolic_tangent<Simd>(ratio));
      }
      if (call.log_weights != nullptr) {
        score = Simd::add(score, load_of(call.log_weights, block, i));
      }
      Simd::store(scores + i, score);
      largest = Simd::at_least(largest, score);
    }
    return largest;
  }

  // Sets what the row does not see in these vectors to `value`.
  static void set_unseen(const AttentionRow& row, const Block& block, const Seen& seen,
                         float* weights, float value) {
    std::fill(weights + seen.first, weights + seen.begin, value);
    std::fill(weights + seen.end, weights + seen.last, value);
    if (row.visible == nullptr) return;
    for (int i = seen.begin; i < seen.end; ++i) {
      if (row.visible[block.begin + i - row.begin] == 0) weights[i] = value;
    }
  }

  // weights = exp(score - maximum); returns their sum. Values' scales then join the weights.
  static float weigh(const AttentionCall& call, const AttentionRow& row, const Block& block,
                     const Seen& seen, float* weights, float maximum) {
    Float total = Simd::set(0.0f);
    const auto join = [&](int i, Float weight) PLIANT_BODY {
      total = Simd::add(total, weight);
      if constexpr (kScaled) weight = Simd::mul(weight, load_of(call.value_scales, block, i));
      Simd::store(weights + i, weight);
    };
    const auto exponential_at = [&](int i) PLIANT_BODY {
      return exponential<Simd>(Simd::sub(Simd::load(weights + i), Simd::set(maximum)));
    };
    if (seen.all) {
      for (int i = seen.first; i < seen.last; i += kLanes) join(i, exponential_at(i));
    } else {
      for (int i = seen.first; i < seen.last; i += kLanes)
        Simd::store(weights + i, exponential_at(i));
      set_unseen(row, block, seen, weights, 0.0f);  // the exponential ends at 1e-38
      for (int i = seen.first; i < seen.last; i += kLanes) join(i, Simd::load(weights + i));
    }
    return Simd::sum(total);
  }

  // From the products to the weights of one row, and what that makes of its maximum and total.
  static void soften(const AttentionCall& call, AttentionRow& row, Block& block, int place) {
    float* weights = block.weights[place];
    const Seen seen(call, row, block);
    Float largest = score(call, block, seen, weights);
    if (!seen.all) {
      set_unseen(row, block, seen, weights, kMinusInfinity);
      largest = Simd::set(kMinusInfinity);
      for (int i = seen.first; i < seen.last; i += kLanes)
        largest = Simd::at_least(largest, Simd::load(weights + i));
    }
    std::fill(weights, weights + seen.first, 0.0f);
    if (seen.last < block.size) std::fill(weights + seen.last, weights + block.size, 0.0f);
    const float block_maximum = largest_lane<Simd>(largest);
    const float grown = block_maximum > row.maximum ? block_maximum : row.maximum;
    block.rescale[place] = 1.0f;
    if (grown == kMinusInfinity) {  // nothing seen so far, or nothing but NaN
      for (int i = seen.begin; i < seen.end; ++i) {
        if (std::isnan(weights[i])) row.total = weights[i];
      }
      std::fill_n(weights, block.size, 0.0f);
      return;
    }
    if (grown != row.maximum) block.rescale[place] = std::exp(row.maximum - grown);
    const float total = weigh(call, row, block, seen, weights, grown);
    row.total = row.total * block.rescale[place] + total;
    row.maximum = grown;
  }

  // output = output * rescale + sum of weight * value for kVectors vectors of the head.
  template <int kRows, int kVectors, typename Count>
  static PLIANT_INLINE void add_values(const AttentionCall& call, const AttentionRow* rows,
                                       int first, const Block& block, int d, Count count) {
    Float sums[kRows][kVectors];
    unroll<kRows>([&](auto row) PLIANT_BODY {
      const Float rescale = Simd::set(block.rescale[first + row]);
      unroll<kVectors>([&](auto n) PLIANT_BODY {
        const float* output = rows[first + row].output + d + n * kLanes;
        sums[row][n] = Simd::mul(load_some<Simd>(output, count), rescale);
      });
    });
    const Element* values = entry_at(call, block.values, 0, d);
    for (int i = 0; i < block.size; ++i, values += call.head_dim) {
      Float weight[kRows];
      unroll<kRows>([&](auto row)
                        PLIANT_BODY { weight[row] = Simd::set(block.weights[first + row][i]); });
      unroll<kVectors>([&](auto n) PLIANT_BODY {
        const Float value = load(values + n * kLanes, count);
        unroll<kRows>([&](auto row) PLIANT_BODY {
          sums[row][n] = Simd::fma(weight[row], value, sums[row][n]);
        });
      });
    }
    unroll<kRows>([&](auto row) PLIANT_BODY {
      unroll<kVectors>([&](auto n) PLIANT_BODY {
        store_some<Simd>(rows[first + row].output + d + n * kLanes, sums[row][n], count);
      });
    });
  }

  // One tile of columns for all rows, with as many rows at a time as there are registers for.
  template <int kVectors, typename Count>
  static void add_columns(const AttentionCall& call, const AttentionRow* rows, int num_rows,
                          const Block& block, int d, Count count) {
    constexpr int kMostRows = kVectors == 8 ? 1 : kVectors == kValueVectors ? 3 : 4;
    for_row_tiles<kMostRows>(num_rows, [&](int first, auto tile) {
      add_values<decltype(tile)::value, kVectors>(call, rows, first, block, d, count);
    });
  }

  static void multiply_values(const AttentionCall& call, const AttentionRow* rows, int num_rows,
                              const Block& block) {
    int d = 0;
    const auto add_whole = [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      for (; d + kVectors * kLanes <= call.head_dim; d += kVectors * kLanes) {
        add_columns<kVectors>(call, rows, num_rows, block, d, kWhole);
      }
    };
    if (num_rows == 1) add_whole(std::integral_constant<int, 8>{});
    // Rows that four divides meet two vectors at a time; others would be left over from fours.
    if (num_rows % 4 != 0) add_whole(std::integral_constant<int, kValueVectors>{});
    add_whole(std::integral_constant<int, 2>{});
    add_whole(std::integral_constant<int, 1>{});
    if (d < call.head_dim) {
      add_columns<1>(call, rows, num_rows, block, d, call.head_dim - d);
    }
  }

  // step(first, rows) over `count` rows, kMost or fewer at a time; one only where there is one.
  template <int kMost, typename Step>
  static PLIANT_INLINE void for_row_tiles(int count, Step&& step) {
    int first = 0;
    for (; kMost == 1 ? first < count : count - first == kMost || count - first > kMost + 1;
         first += kMost) {
      step(first, std::integral_constant<int, kMost>{});
    }
    if constexpr (kMost > 3) {
      for (; count - first == 3 || count - first == 5; first += 3) {
        step(first, std::integral_constant<int, 3>{});
      }
    }
    if constexpr (kMost > 1) {
      for (; count - first >= 2; first += 2) step(first, std::integral_constant<int, 2>{});
    }
    if (first < count) step(first, std::integral_constant<int, 1>{});
  }

  static void attend_block(const AttentionCall& call, AttentionRow* rows, int count, Block& block) {
    multiply_keys(call, rows, count, block);
    for (int row = 0; row < count; ++row) soften(call, rows[row], block, row);
    multiply_values(call, rows, count, block);
  }

  // The blocks of a cache whose entries lie one behind the other.
  static void attend(const AttentionCall& call) {
    const AttentionRange range = begin_rows(call);
    const size_t size = size_t(call.head_dim) * sizeof(Element);
    Block block;
    block.ahead = true;
    for (int begin = range.begin; begin < range.end; begin += kAttentionBlock) {
      const size_t offset = size_t(begin) * size;
      attend_at(call, {begin, range.end}, static_cast<const char*>(call.keys) + offset,
                static_cast<const char*>(call.values) + offset, block);
    }
  }

  // All rows over the block that begins `rest`, whose entries lie at `keys` and `values`.
  static void attend_at(const AttentionCall& call, AttentionRange rest, const void* keys,
                        const void* values, Block& block) {
    block.begin = rest.begin;
    block.size = std::min(kAttentionBlock, rest.end - rest.begin);
    block.keys = keys, block.values = values;
    for (int row = 0; row < call.num_rows; row += kAttentionRows) {
      attend_block(call, call.rows + row, std::min(kAttentionRows, call.num_rows - row), block);
    }
  }
};

}  // namespace
}  // namespace pliant
