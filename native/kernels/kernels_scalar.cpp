// The definition of every kernel: plain C++, one value at a time.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/half.h"
#include "kernels/cache_codes.h"
#include "kernels/paths.h"
#include "kernels/quantize_limits.h"

namespace pliant {
namespace {

struct Place {
  int tile;
  int row_in_tile;

  explicit Place(int row) : tile(row / kTileRows), row_in_tile(row % kTileRows) {}
};

// The byte of a plane that holds (row, column) and, at `bit`, its bit.
size_t byte_offset(const PlaneMatrix& matrix, const Place& place, int column) {
  const size_t chunk = size_t(column / kChunkColumns) * kChunkBytes;
  const int vector = place.row_in_tile / 16 * 64;
  const int lane = place.row_in_tile % 16 * 4 + column % 4;
  return size_t(place.tile) * matrix.tile_stride_bytes() + chunk + size_t(vector + lane);
}

int code_at(const PlaneMatrix& matrix, const Place& place, int column) {
  const size_t byte = byte_offset(matrix, place, column);
  const int bit = column % kChunkColumns / 4;
  int code = 0;
  for (int plane = 0; plane < matrix.num_planes; ++plane) {
    code = 2 * code + ((matrix.planes[size_t(plane)][byte] >> bit) & 1);
  }
  return code;
}

float scale_at(const PlaneMatrix& matrix, const Place& place, int group) {
  const size_t index = size_t(place.tile) * matrix.tile_stride_scales() +
                       size_t(group * kTileRows + place.row_in_tile);
  return half_to_float(matrix.scales[index]);
}

int code_step(const PlaneMatrix& matrix) { return 1 << (kMaxPlanes - matrix.num_planes); }

// step * (u + 0.5) - 128: the middle of the 8-bit codes that begin with the planes read.
float midpoint(const PlaneMatrix& matrix, int code) {
  return float(code_step(matrix)) * (float(code) + 0.5f) - 128.0f;
}

// Values that share one scale.
void quantize_run(const float* x, int size, int8_t* codes, float* scale, int32_t* sum) {
  uint32_t maximum_bits = 0;
  for (int i = 0; i < size; ++i) {
    maximum_bits = std::max(maximum_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  const QuantizeFactors factors = quantize_factors(maximum_bits);
  *scale = factors.scale;
  *sum = 0;
  std::memset(codes, 0, size_t(size));
  if (factors.inverse == 0.0f) return;
  for (int i = 0; i < size; ++i) {
    codes[i] = int8_t(std::nearbyint(x[i] * factors.inverse));
    *sum += codes[i];
  }
}

void quantize(const float* x, int columns, int stride, int8_t* codes, float* scales,
              int32_t* sums) {
  for (int group = 0; group < stride / kGroupColumns; ++group) {
    const int begin = std::min(group * kGroupColumns, columns);
    const int size = std::min(columns - begin, kGroupColumns);
    int8_t* group_codes = codes + group * kGroupColumns;
    std::memset(group_codes, 0, kGroupColumns);
    quantize_run(x + begin, size, group_codes, scales + group, sums + group);
  }
}

float dot_int8(const PlaneMatrix& matrix, const Int8Activations& x, int token, int row) {
  const Place place(row);
  const int step = code_step(matrix);
  const size_t num_groups = size_t(x.stride / kGroupColumns);
  const int8_t* codes = x.codes + size_t(token) * size_t(x.stride);
  float y = 0.0f;
  for (int group = 0; group < matrix.groups(); ++group) {
    const int begin = group * kGroupColumns;
    const int end = std::min(begin + kGroupColumns, matrix.columns);
    int dot = 0;
    for (int column = begin; column < end; ++column) {
      dot += code_at(matrix, place, column) * codes[column];
    }
    const size_t index = size_t(token) * num_groups + size_t(group);
    const int n = 2 * step * dot + (step - 256) * x.sums[index];
    y = std::fma(float(n), (0.5f * scale_at(matrix, place, group)) * x.scales[index], y);
  }
  return y;
}

void planes_int8(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin, int tile_end,
                 float* y, size_t y_stride, void*) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int token = 0; token < x.tokens; ++token) {
    for (int row = tile_begin * kTileRows; row < row_end; ++row) {
      y[size_t(token) * y_stride + size_t(row)] = dot_int8(matrix, x, token, row);
    }
  }
}

size_t planes_int8_scratch(const PlaneMatrix&, int) { return 0; }

float dot_f32(const PlaneMatrix& matrix, const float* x, int row) {
  const Place place(row);
  float y = 0.0f;
  for (int group = 0; group < matrix.groups(); ++group) {
    const int begin = group * kGroupColumns;
    const int end = std::min(begin + kGroupColumns, matrix.columns);
    float dot = 0.0f;
    for (int column = begin; column < end; ++column) {
      dot = std::fma(midpoint(matrix, code_at(matrix, place, column)), x[column], dot);
    }
    y = std::fma(scale_at(matrix, place, group), dot, y);
  }
  return y;
}

void planes_f32(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                int tile_begin, int tile_end, float* y, size_t y_stride) {
  const int row_end = std::min(tile_end * kTileRows, matrix.rows);
  for (int token = 0; token < tokens; ++token) {
    for (int row = tile_begin * kTileRows; row < row_end; ++row) {
      y[size_t(token) * y_stride + size_t(row)] =
          dot_f32(matrix, x + size_t(token) * x_stride, row);
    }
  }
}

void sum_scales(const PlaneMatrix& matrix, const float* weight, int tile_begin, int tile_end,
                float* y) {
  for (int row = tile_begin * kTileRows; row < std::min(tile_end * kTileRows, matrix.rows); ++row) {
    y[row] = 0.0f;
    for (int group = 0; group < matrix.groups(); ++group)
      y[row] = std::fma(scale_at(matrix, Place(row), group), weight[group], y[row]);
  }
}

void decode_row(const PlaneMatrix& matrix, int row, float* y) {
  const Place place(row);
  for (int column = 0; column < matrix.columns; ++column) {
    y[column] = scale_at(matrix, place, column / kGroupColumns) *
                midpoint(matrix, code_at(matrix, place, column));
  }
}

void rms_norm(const float* x, const float* weight, float offset, float epsilon, int size,
              float* y) {
  double squares = 0.0;
  for (int i = 0; i < size; ++i) squares += double(x[i]) * double(x[i]);
  const float factor = float(1.0 / std::sqrt(squares / size + double(epsilon)));
  for (int i = 0; i < size; ++i) y[i] = x[i] * factor * (weight[i] + offset);
}

void norm_quantize(const float* x, const float* weight, float offset, float epsilon, int size,
                   int stride, int8_t* codes, float* scales, int32_t* sums) {
  std::vector<float> normed(static_cast<size_t>(size));
  rms_norm(x, weight, offset, epsilon, size, normed.data());
  quantize(normed.data(), size, stride, codes, scales, sums);
}

void rotate(float* head, const float* cosine, const float* sine, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + half] = b * cosine[i] + a * sine[i];
  }
}

float activate(Activation activation, float x) {
  constexpr float kSqrtHalf = 0.70710678f;     // 1 / sqrt(2)
  constexpr float kSqrtTwoByPi = 0.79788456f;  // sqrt(2 / pi)
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0f + std::exp(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + std::erf(kSqrtHalf * x));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(kSqrtTwoByPi * (x + 0.044715f * x * x * x)));
  }
  return x;
}

void gated(Activation activation, const float* gate, const float* up, int size, float* y) {
  for (int i = 0; i < size; ++i) y[i] = activate(activation, gate[i]) * up[i];
}

void add(const float* x, int size, float* y) {
  for (int i = 0; i < size; ++i) y[i] += x[i];
}

void store(const float* x, int size, CacheType type, void* y, float* scale) {
  if (type == CacheType::kFloat32) {
    std::memcpy(y, x, size_t(size) * sizeof(float));
  } else if (type == CacheType::kFloat16) {
    uint16_t* halves = static_cast<uint16_t*>(y);
    for (int i = 0; i < size; ++i) halves[i] = float_to_half(x[i]);
  } else {
    int32_t sum;
    quantize_run(x, size, static_cast<int8_t*>(y), scale, &sum);
  }
}

// Channel `d` of the key, or of the value, of an entry.
float cache_value(const AttentionCall& call, bool is_key, int entry, int d) {
  const size_t size = size_t(call.head_dim);
  if (call.coded_bits > 0 && entry < call.folded) {
    const uint8_t* unit =
        (is_key ? call.coded_keys : call.coded_values) +
        size_t(entry / kCacheUnit) * coded_unit_bytes(call.coded_bits, call.head_dim);
    return coded_value(unit, call.coded_bits, call.head_dim, is_key, entry % kCacheUnit, d);
  }
  const void* entries = is_key ? call.keys : call.values;
  size_t row = size_t(entry);
  if (call.coded_bits > 0)
    row = size_t(entry / kCacheUnit % call.ring_units * kCacheUnit + entry % kCacheUnit);
  const size_t i = row * size + size_t(d);
  switch (call.type) {
    case CacheType::kFloat32:
      return static_cast<const float*>(entries)[i];
    case CacheType::kFloat16:
      return half_to_float(static_cast<const uint16_t*>(entries)[i]);
    case CacheType::kInt8:
      return (is_key ? call.key_scales : call.value_scales)[entry] *
             float(static_cast<const int8_t*>(entries)[i]);
  }
  return 0.0f;
}

float score_of(const AttentionCall& call, const AttentionRow& row, int entry) {
  float dot = 0.0f;
  for (int i = 0; i < call.head_dim; ++i) {
    dot = std::fma(row.query[i], cache_value(call, true, entry, i), dot);
  }
  float score = call.scale * dot;
  if (call.softcap != 0.0f) score = call.softcap * std::tanh(score / call.softcap);
  return call.log_weights == nullptr ? score : score + call.log_weights[entry];
}

// Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867): one pass, rescaled whenever the
// maximum grows.
void attend_row(const AttentionCall& call, AttentionRow& row) {
  row.maximum = -std::numeric_limits<float>::infinity();
  row.total = 0.0f;
  std::fill_n(row.output, call.head_dim, 0.0f);
  for (int entry = std::max(call.begin, row.begin); entry < std::min(call.end, row.end); ++entry) {
    if (row.visible != nullptr && row.visible[entry - row.begin] == 0) continue;
    const float score = score_of(call, row, entry);
    if (score == -std::numeric_limits<float>::infinity()) continue;  // an entry of weight zero
    if (score > row.maximum) {
      const float rescale = std::exp(row.maximum - score);
      row.total *= rescale;
      for (int i = 0; i < call.head_dim; ++i) row.output[i] *= rescale;
      row.maximum = score;
    }
    const float weight = std::exp(score - row.maximum);
    row.total += weight;
    for (int i = 0; i < call.head_dim; ++i) {
      row.output[i] = std::fma(weight, cache_value(call, false, entry, i), row.output[i]);
    }
  }
}

void attend(const AttentionCall& call) {
  for (int row = 0; row < call.num_rows; ++row) attend_row(call, call.rows[row]);
}

}  // namespace

const Kernels kScalarKernels = {"scalar",
                                quantize,
                                planes_int8,
                                planes_int8_scratch,
                                planes_f32,
                                sum_scales,
                                decode_row,
                                rms_norm,
                                norm_quantize,
                                rotate,
                                gated,
                                add,
                                store,
                                attend,
                                coefficients_int8_scalar,
                                coefficients_f32_scalar,
                                coefficients_row,
                                ternary_int8_scalar,
                                &kLowRankScalar,
                                &kScoresScalar};

}  // namespace pliant
