// Attention over every type of cache, coded ones too, against the scalar definition.
#include <algorithm>
#include <cmath>

#include "checks.h"
#include "kernels/cache_codes.h"

namespace pliant {
namespace {

// Entries [entries][head_dim] in memory of exactly the size that a cache of their type has.
struct StoredEntries {
  std::vector<uint8_t> rows;
  std::vector<float> scales;

  StoredEntries(const Kernels& kernels, const std::vector<float>& values, int entries, int head_dim,
                CacheType type) {
    const size_t value_bytes = type == CacheType::kFloat32   ? 4
                               : type == CacheType::kFloat16 ? 2
                                                             : 1;
    rows.resize(values.size() * value_bytes);
    scales.resize(size_t(entries));
    for (int entry = 0; entry < entries; ++entry) {
      const size_t first = size_t(entry) * size_t(head_dim);
      kernels.store(values.data() + first, head_dim, type, rows.data() + first * value_bytes,
                    &scales[size_t(entry)]);
    }
  }
};

// Rows that see all, a part from the middle on, and what a mask leaves.
struct RandomRows {
  std::vector<float> queries, outputs;
  std::vector<uint8_t> visible;
  std::vector<AttentionRow> rows;

  RandomRows(int num_rows, int entries, int head_dim)
      : queries(exact(normals(size_t(num_rows * head_dim), 1.0f))),
        outputs(queries.size()),
        visible(size_t(entries)) {
    for (uint8_t& flag : visible) flag = random_bits() % 3 != 0;
    visible.back() = 1;
    for (int row = 0; row < num_rows; ++row) {
      AttentionRow it;
      it.query = queries.data() + row * head_dim;
      it.output = outputs.data() + row * head_dim;
      it.begin = row % 3 == 1 ? entries / 3 : 0;
      it.end = row % 4 == 2 ? (entries + it.begin + 1) / 2 : entries;
      if (row % 3 == 2 && it.end == entries) it.visible = visible.data();
      rows.push_back(it);
    }
  }
};

// The same entries as a coded cache holds them: codes of all whole units but the last two, and a
// ring of three units of fp16 rows.
struct CodedEntries {
  static constexpr int kRingUnits = 3;
  int folded = 0;  // entries
  std::vector<uint8_t> units;
  std::vector<uint16_t> ring;

  CodedEntries(const Kernels& kernels, const std::vector<float>& values, int entries, int head_dim,
               int bits, bool is_key) {
    const StoredEntries stored(kernels, values, entries, head_dim, CacheType::kFloat16);
    std::vector<uint16_t> rows(values.size());
    std::memcpy(rows.data(), stored.rows.data(), stored.rows.size());
    const size_t row = size_t(head_dim), unit_bytes = coded_unit_bytes(bits, head_dim);
    const int num_units = std::max(0, entries / kCacheUnit - 2);
    folded = num_units * kCacheUnit;
    units.resize(size_t(num_units) * unit_bytes);
    for (int unit = 0; unit < num_units; ++unit)
      encode_unit(rows.data() + size_t(unit) * kCacheUnit * row, bits, head_dim, is_key,
                  units.data() + size_t(unit) * unit_bytes);
    ring.resize(size_t(kRingUnits) * kCacheUnit * row);
    for (int entry = folded; entry < entries; ++entry) {
      const size_t place =
          size_t(entry / kCacheUnit % kRingUnits * kCacheUnit + entry % kCacheUnit);
      std::copy_n(rows.data() + size_t(entry) * row, row, ring.data() + place * row);
    }
  }
};

// What both paths make of a call over normal entries differs by no more than arithmetic explains.
void check_call(const Kernels& scalar, const Kernels& path, const AttentionCall& call,
                const RandomRows& random, const std::string& what) {
  const int head_dim = call.head_dim, entries = call.end;
  const auto finished = [&](const Kernels& kernels) {
    kernels.attend(call);
    std::vector<float> output;
    for (int i = 0; i < call.num_rows * head_dim; ++i)
      output.push_back(random.outputs[size_t(i)] / random.rows[size_t(i / head_dim)].total);
    return output;
  };
  const std::vector<float> a = finished(scalar), b = finished(path);
  // A score differs by 2 (d + 3) u |q||k| scale, |q||k| scale < 4 sqrt(d), and by 16 u of the
  // cap; a weight by as much, relative; |v| < 6. Sums over entries: 2 (n + 8) u |v|.
  const double score = 2 * (head_dim + 3) * 4 * std::sqrt(head_dim) + 16 * 20;
  const double bound = 0x1p-24 * 6 * (2 * score + 2 * (entries + 8));
  expect(distance(a, b, bound) <= 1.0,
         std::string(path.isa) + " attend " + what + " " + std::to_string(call.num_rows) + " " +
             std::to_string(head_dim) + " " + std::to_string(entries));
}

// What calls over all kinds of caches share.
AttentionCall call_of(RandomRows& random, const std::vector<float>& log_weights, int entries,
                      int head_dim, bool is_weighted) {
  AttentionCall call;
  call.end = entries;
  call.log_weights = is_weighted ? log_weights.data() : nullptr;
  call.softcap = is_weighted ? 20.0f : 0.0f;
  call.head_dim = head_dim;
  call.scale = 1.0f / std::sqrt(float(head_dim));
  call.rows = random.rows.data();
  call.num_rows = int(random.rows.size());
  return call;
}

std::vector<float> random_log_weights(int entries) {
  auto log_weights = normals(size_t(entries), 1.0f);
  if (entries > 3) log_weights[1] = -INFINITY;
  return log_weights;
}

void check_plain(const Kernels& scalar, const Kernels& path, int num_rows, int entries,
                 int head_dim, int variant) {
  const size_t size = size_t(entries) * size_t(head_dim);
  const CacheType type = CacheType(variant % 3);
  const auto keys = exact(normals(size, 1.0f)), values = exact(normals(size, 1.0f));
  const StoredEntries stored_keys(scalar, keys, entries, head_dim, type);
  const StoredEntries stored_values(path, values, entries, head_dim, type);
  const auto log_weights = random_log_weights(entries);
  RandomRows random(num_rows, entries, head_dim);
  AttentionCall call = call_of(random, log_weights, entries, head_dim, variant >= 3);
  call.keys = stored_keys.rows.data();
  call.values = stored_values.rows.data();
  call.key_scales = stored_keys.scales.data();
  call.value_scales = stored_values.scales.data();
  call.type = type;
  check_call(scalar, path, call, random, "plain " + std::to_string(variant));
}

void check_coded(const Kernels& scalar, const Kernels& path, int num_rows, int entries,
                 int head_dim, int bits) {
  const size_t size = size_t(entries) * size_t(head_dim);
  const auto keys = exact(normals(size, 1.0f)), values = exact(normals(size, 1.0f));
  const CodedEntries coded_keys(scalar, keys, entries, head_dim, bits, true);
  const CodedEntries coded_values(path, values, entries, head_dim, bits, false);
  const auto log_weights = random_log_weights(entries);
  RandomRows random(num_rows, entries, head_dim);
  AttentionCall call = call_of(random, log_weights, entries, head_dim, num_rows % 2 == 0);
  call.keys = coded_keys.ring.data();
  call.values = coded_values.ring.data();
  call.coded_keys = coded_keys.units.data();
  call.coded_values = coded_values.units.data();
  call.coded_bits = bits;
  call.folded = coded_keys.folded;
  call.ring_units = CodedEntries::kRingUnits;
  std::vector<float> decoded(decoded_floats(head_dim));
  call.decoded = decoded.data();
  check_call(scalar, path, call, random, "int" + std::to_string(bits));
}

}  // namespace

void check_attention(const Kernels& scalar, const Kernels& path) {
  for (int head_dim : {2, 8, 24, 32, 64, 80, 128, 256})
    for (int entries : {1, 3, 4, 63, 64, 65, 200})
      for (int num_rows : {1, 2, 3, 4, 7, 18})
        for (int variant = 0; variant < 6; ++variant)
          check_plain(scalar, path, num_rows, entries, head_dim, variant);
  // Sizes that no vector divides, an entry before and behind the end of a unit.
  for (int head_dim : {2, 10, 32, 44, 80, 136})
    for (int entries : {100, 191, 192, 193, 330})
      for (int num_rows : {1, 2, 4, 19})
        for (int bits : {2, 3, 4}) check_coded(scalar, path, num_rows, entries, head_dim, bits);
}

void check_cache_codes() {
  for (int head_dim : {2, 10, 32, 44})
    for (int bits : {2, 3, 4})
      for (const bool is_key : {true, false}) {
        const size_t size = size_t(kCacheUnit) * size_t(head_dim);
        std::vector<uint16_t> rows(size), back(size);
        // All numbers there are: infinities, NaN, the least and the largest.
        for (uint16_t& half : rows) half = uint16_t(random_bits());
        for (size_t i = 0; i < size / 2; ++i) rows[i] = float_to_half(normals(1, 1.0f)[0]);
        // One channel, or entry, from end to end of what is finite.
        const size_t stride = is_key ? size_t(head_dim) : 1;
        for (size_t i = 0; i < size / 2; i += stride) {
          if (is_key || i < size_t(head_dim)) rows[i] = i / stride % 2 == 0 ? 0x7bff : 0xfbff;
        }
        std::vector<uint8_t> unit(coded_unit_bytes(bits, head_dim));
        rows = exact(rows);
        encode_unit(rows.data(), bits, head_dim, is_key, unit.data());
        decode_unit(unit.data(), bits, head_dim, is_key, 0, kCacheUnit, back.data());
        bool near = true;
        for (int entry = 0; entry < kCacheUnit; ++entry)
          for (int channel = 0; channel < head_dim; ++channel) {
            const size_t at = size_t(entry * head_dim + channel);
            const ScalePlace place = is_key ? key_scale_place(head_dim, entry, channel)
                                            : value_scale_place(entry, channel);
            const float step = half_to_float(unit_scales(unit.data(), bits, head_dim)[place.scale]);
            const double wanted = half_to_float(rows[at]), found = half_to_float(back[at]);
            if (std::isnan(found) && at >= size / 2) continue;  // its group is not finite
            // Half a step; the step's own rounding to fp16 at up to 15 codes, or a whole number of
            // 2^-24 where it is subnormal; and that of the result.
            const double rounding =
                15 * (step * 0x1p-11 + 0x1p-25) + std::fabs(wanted) * 0x1p-10 + 0x1p-24;
            near = near && std::fabs(wanted - found) <= double(step) / 2 + rounding;
          }
        expect(near, "codes of " + std::to_string(bits) + " bits, " + std::to_string(head_dim));
      }
}

}  // namespace pliant
