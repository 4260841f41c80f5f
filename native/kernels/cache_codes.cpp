// Rounding of whole units of cache entries; done once for each entry, so plain code is enough, and
// all kernel paths share its codes to the last bit.
#include "kernels/cache_codes.h"

namespace pliant {
namespace {

// Scale, minimum and codes of kCacheGroup values or fewer.
struct CodedGroup {
  uint16_t scale = 0;
  uint16_t minimum = 0;
  int codes[kCacheGroup] = {};

  CodedGroup(const float* x, int size, int bits) {
    float lowest = x[0], highest = x[0];
    bool finite = true;
    for (int i = 0; i < size; ++i) {
      finite = finite && std::isfinite(x[i]);
      lowest = std::min(lowest, x[i]), highest = std::max(highest, x[i]);
    }
    if (!finite) {
      scale = minimum = float_to_half(std::numeric_limits<float>::quiet_NaN());
      return;
    }
    const int most = (1 << bits) - 1;
    // Both ends are fp16 numbers, of which the largest range is 131 008: over 3, it fits.
    minimum = float_to_half(lowest);
    scale = float_to_half((highest - lowest) / float(most));
    const float step = half_to_float(scale);
    if (step == 0.0f) return;
    for (int i = 0; i < size; ++i)
      codes[i] = std::clamp(int(std::nearbyint((x[i] - lowest) / step)), 0, most);
  }
};

}  // namespace

void encode_unit(const uint16_t* rows, int bits, int head_dim, bool is_key, uint8_t* unit) {
  std::memset(unit, 0, coded_unit_bytes(bits, head_dim));
  uint16_t* scales = reinterpret_cast<uint16_t*>(unit + unit_code_bytes(bits, head_dim));
  const auto at = [&](int entry, int channel) {
    return half_to_float(rows[size_t(entry) * size_t(head_dim) + size_t(channel)]);
  };
  float x[kCacheGroup];
  if (is_key) {
    for (int begin = 0; begin < kCacheUnit; begin += kCacheGroup)
      for (int channel = 0; channel < head_dim; ++channel) {
        for (int i = 0; i < kCacheGroup; ++i) x[i] = at(begin + i, channel);
        const CodedGroup group(x, kCacheGroup, bits);
        const ScalePlace place = key_scale_place(head_dim, begin, channel);
        scales[place.scale] = group.scale, scales[place.minimum] = group.minimum;
        for (int i = 0; i < kCacheGroup; ++i)
          set_code(unit, bits, head_dim, begin + i, channel, group.codes[i]);
      }
    return;
  }
  for (int entry = 0; entry < kCacheUnit; ++entry)
    for (int begin = 0; begin < head_dim; begin += kCacheGroup) {
      const int size = std::min(kCacheGroup, head_dim - begin);
      for (int i = 0; i < size; ++i) x[i] = at(entry, begin + i);
      const CodedGroup group(x, size, bits);
      const ScalePlace place = value_scale_place(entry, begin);
      scales[place.scale] = group.scale, scales[place.minimum] = group.minimum;
      for (int i = 0; i < size; ++i)
        set_code(unit, bits, head_dim, entry, begin + i, group.codes[i]);
    }
}

void decode_unit(const uint8_t* unit, int bits, int head_dim, bool is_key, int begin, int end,
                 uint16_t* rows) {
  // A scale that was rounded up may lead beyond the largest fp16 number, which is no infinity.
  constexpr float kLargest = 65504.0f;
  for (int entry = begin; entry < end; ++entry)
    for (int channel = 0; channel < head_dim; ++channel)
      rows[size_t(entry) * size_t(head_dim) + size_t(channel)] = float_to_half(std::clamp(
          coded_value(unit, bits, head_dim, is_key, entry, channel), -kLargest, kLargest));
}

}  // namespace pliant
