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
// Sums that run at the same time: the latency of a multiply-add times the two begun per cycle.
constexpr int kAttentionSums = 8;

// Scores, then weights, of some rows for the entries of one block from its first on.
struct AttentionBlock {
  int begin = 0;
  int size = 0;
  alignas(64) float weights[kAttentionRows][kAttentionBlock];
  float rescale[kAttentionRows];  // of what a row gathered before
};

template <typename Simd, typename Element>
struct Attention {
  using Float = typename Simd::Float;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  static constexpr bool kScaled = sizeof(Element) == 1;

  template <typename Count>
  static PLIANT_INLINE Float load(const Element* p, Count count) {
    constexpr bool kWhole = !std::is_same_v<Count, int>;
    if constexpr (sizeof(Element) == 4) return load_some<Simd>(p, count);
    if constexpr (sizeof(Element) == 2) {
      if constexpr (kWhole) return Simd::load_half(p);
      return Simd::load_half_first(p, count);
    }
    if constexpr (sizeof(Element) == 1) {
      if constexpr (kWhole) return Simd::load_int8(p);
      return Simd::load_int8_first(p, count);
    }
  }

  // The products q.k of kRows rows with the block's keys; each key is loaded once for all of them.
  template <int kRows>
  static void multiply_keys(const AttentionCall& call, const AttentionRow* rows, int first,
                            AttentionBlock& block) {
    constexpr int kEntries = kAttentionSums / kRows;
    const Element* keys =
        static_cast<const Element*>(call.keys) + size_t(block.begin) * size_t(call.head_dim);
    for (int i = 0; i < block.size; i += kEntries) {
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

  // Scores from the products q.k.
  static void score(const AttentionCall& call, const AttentionBlock& block, float* scores) {
    for_each_vector<Simd>(block.size, [&](int i, auto count) PLIANT_BODY {
      const int entry = block.begin + i;
      Float score = Simd::mul(Simd::load(scores + i), Simd::set(call.scale));
      if constexpr (kScaled) {
        score = Simd::mul(score, load_some<Simd>(call.key_scales + entry, count));
      }
      if (call.softcap != 0.0f) {
        const Float ratio = Simd::div(score, Simd::set(call.softcap));
        score = Simd::mul(Simd::set(call.softcap), hyperbolic_tangent<Simd>(ratio));
      }
      if (call.log_weights != nullptr) {
        score = Simd::add(score, load_some<Simd>(call.log_weights + entry, count));
      }
      Simd::store(scores + i, score);
    });
  }

  // Sets what the row does not see to `value`, up to whole vectors.
  static void set_unseen(const AttentionCall& call, const AttentionRow& row,
                         const AttentionBlock& block, float* weights, float value) {
    const int padded = ceil_div(block.size, kLanes) * kLanes;
    const int seen_begin = std::clamp(row.begin - block.begin, 0, block.size);
    const int seen_end =
        std::clamp(std::min(row.end, call.end) - block.begin, seen_begin, block.size);
    std::fill(weights, weights + seen_begin, value);
    std::fill(weights + seen_end, weights + padded, value);
    if (row.visible == nullptr) return;
    for (int i = seen_begin; i < seen_end; ++i) {
      if (row.visible[block.begin + i - row.begin] == 0) weights[i] = value;
    }
  }

  // The largest of the block's scores, NaN left out.
  static float maximum_of(const AttentionBlock& block, const float* scores) {
    Float largest = Simd::set(kMinusInfinity);
    for (int i = 0; i < block.size; i += kLanes) {
      largest = Simd::at_least(largest, Simd::load(scores + i));
    }
    float lanes[kLanes];
    Simd::store(lanes, largest);
    float maximum = kMinusInfinity;
    for (float lane : lanes) maximum = lane > maximum ? lane : maximum;
    return maximum;
  }

  // weights = exp(score - maximum); returns their sum. Values' scales then join the weights.
  static float weigh(const AttentionCall& call, const AttentionRow& row,
                     const AttentionBlock& block, float* weights, float maximum) {
    for (int i = 0; i < block.size; i += kLanes) {
      const Float score = Simd::sub(Simd::load(weights + i), Simd::set(maximum));
      Simd::store(weights + i, exponential<Simd>(score));
    }
    set_unseen(call, row, block, weights, 0.0f);  // the exponential ends at 1e-38
    Float total = Simd::set(0.0f);
    for (int i = 0; i < block.size; i += kLanes) total = Simd::add(total, Simd::load(weights + i));
    if constexpr (kScaled) {
      for_each_vector<Simd>(block.size, [&](int i, auto count) PLIANT_BODY {
        const Float scale = load_some<Simd>(call.value_scales + block.begin + i, count);
        Simd::store(weights + i, Simd::mul(Simd::load(weights + i), scale));
      });
    }
    return Simd::sum(total);
  }

  // From the products to the weights of one row, and what that makes of its maximum and total.
  static void soften(const AttentionCall& call, AttentionRow& row, AttentionBlock& block,
                     int place) {
    float* weights = block.weights[place];
    score(call, block, weights);
    set_unseen(call, row, block, weights, kMinusInfinity);
    const float block_maximum = maximum_of(block, weights);
    const float grown = block_maximum > row.maximum ? block_maximum : row.maximum;
    block.rescale[place] = 1.0f;
    if (grown == kMinusInfinity) {  // nothing seen so far, or nothing but NaN
      for (int i = 0; i < block.size; ++i) {
        if (std::isnan(weights[i])) row.total = weights[i];
      }
      std::fill_n(weights, block.size, 0.0f);
      return;
    }
    if (grown != row.maximum) block.rescale[place] = std::exp(row.maximum - grown);
    row.total = row.total * block.rescale[place] + weigh(call, row, block, weights, grown);
    row.maximum = grown;
  }

  // output = output * rescale + sum of weight * value for kVectors vectors of the head.
  template <int kRows, int kVectors, typename Count>
  static PLIANT_INLINE void add_values(const AttentionCall& call, const AttentionRow* rows,
                                       int first, const AttentionBlock& block, int d, Count count) {
    const Element* values =
        static_cast<const Element*>(call.values) + size_t(block.begin) * size_t(call.head_dim) + d;
    Float sums[kRows][kVectors];
    unroll<kRows>([&](auto row) PLIANT_BODY {
      const Float rescale = Simd::set(block.rescale[first + row]);
      unroll<kVectors>([&](auto n) PLIANT_BODY {
        const float* output = rows[first + row].output + d + n * kLanes;
        sums[row][n] = Simd::mul(load_some<Simd>(output, count), rescale);
      });
    });
    for (int i = 0; i < block.size; ++i, values += call.head_dim) {
      Float value[kVectors];
      unroll<kVectors>([&](auto n) PLIANT_BODY { value[n] = load(values + n * kLanes, count); });
      unroll<kRows>([&](auto row) PLIANT_BODY {
        const Float weight = Simd::set(block.weights[first + row][i]);
        unroll<kVectors>(
            [&](auto n) PLIANT_BODY { sums[row][n] = Simd::fma(weight, value[n], sums[row][n]); });
      });
    }
    unroll<kRows>([&](auto row) PLIANT_BODY {
      unroll<kVectors>([&](auto n) PLIANT_BODY {
        store_some<Simd>(rows[first + row].output + d + n * kLanes, sums[row][n], count);
      });
    });
  }

  template <int kRows>
  static void multiply_values(const AttentionCall& call, const AttentionRow* rows, int first,
                              const AttentionBlock& block) {
    constexpr std::integral_constant<int, kLanes> kWhole{};
    constexpr int kVectors = kAttentionSums / kRows;
    int d = 0;
    for (; d + kVectors * kLanes <= call.head_dim; d += kVectors * kLanes) {
      add_values<kRows, kVectors>(call, rows, first, block, d, kWhole);
    }
    for (; d + kLanes <= call.head_dim; d += kLanes) {
      add_values<kRows, 1>(call, rows, first, block, d, kWhole);
    }
    if (d < call.head_dim) add_values<kRows, 1>(call, rows, first, block, d, call.head_dim - d);
  }

  // step(first, rows) over `count` rows, four, two or one at a time.
  template <typename Step>
  static PLIANT_INLINE void for_row_tiles(int count, Step&& step) {
    int first = 0;
    for (; first + 4 <= count; first += 4) step(first, std::integral_constant<int, 4>{});
    if (first + 2 <= count) {
      step(first, std::integral_constant<int, 2>{});
      first += 2;
    }
    if (first < count) step(first, std::integral_constant<int, 1>{});
  }

  static void attend_block(const AttentionCall& call, AttentionRow* rows, int count,
                           AttentionBlock& block) {
    for_row_tiles(count, [&](int first, auto tile) {
      multiply_keys<decltype(tile)::value>(call, rows, first, block);
    });
    for (int row = 0; row < count; ++row) soften(call, rows[row], block, row);
    for_row_tiles(count, [&](int first, auto tile) {
      multiply_values<decltype(tile)::value>(call, rows, first, block);
    });
  }

  static void attend(const AttentionCall& call) {
    AttentionBlock block;
    int begin = call.end, end = call.begin;  // what any row sees
    for (int row = 0; row < call.num_rows; ++row) {
      AttentionRow& it = call.rows[row];
      begin = std::min(begin, it.begin), end = std::max(end, it.end);
      it.maximum = kMinusInfinity, it.total = 0.0f;
      std::fill_n(it.output, call.head_dim, 0.0f);
    }
    begin = std::max(begin, call.begin) / kAttentionBlock * kAttentionBlock;
    end = std::min(end, call.end);
    for (block.begin = begin; block.begin < end; block.begin += kAttentionBlock) {
      block.size = std::min(kAttentionBlock, end - block.begin);
      for (int row = 0; row < call.num_rows; row += kAttentionRows) {
        attend_block(call, call.rows + row, std::min(kAttentionRows, call.num_rows - row), block);
      }
    }
  }
};

template <typename Simd>
void attend(const AttentionCall& call) {
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
