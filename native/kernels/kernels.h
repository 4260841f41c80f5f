// The kernel contract: what every instruction-set path computes, byte for byte and sum for sum.
//
// A matrix W[rows, columns] is read as its first `num_planes` bit-planes (bits/layout.py is the
// law of the layout). With u = the unsigned code made of those planes (most significant first),
// step = 2^(8 - num_planes) and s = the fp16 scale of (row, group of 64 columns):
//
//     W[row, column] = s * (step * (u + 0.5) - 128)
//
// the midpoint of the range of 8-bit codes that share the planes read. kernels_scalar.cpp is the
// definition; each other file repeats it faster and is tested for equality with it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pliant {

constexpr int kTileRows = 32;
constexpr int kChunkColumns = 32;
constexpr int kChunkBytes = kTileRows * kChunkColumns / 8;
constexpr int kGroupColumns = 64;
constexpr int kMaxPlanes = 8;

constexpr int ceil_div(int value, int unit) { return (value + unit - 1) / unit; }

// What every stored matrix shares: its prefix of rows and columns, and the strides between tiles,
// which `stored_columns` alone decides.
struct TiledShape {
  int rows = 0;
  int columns = 0;
  int stored_columns = 0;

  int tiles() const { return ceil_div(rows, kTileRows); }
  int chunks() const { return ceil_div(columns, kChunkColumns); }
  int groups() const { return ceil_div(columns, kGroupColumns); }
  size_t tile_stride_bytes() const {
    return size_t(ceil_div(stored_columns, kChunkColumns)) * kChunkBytes;
  }
  size_t tile_stride_scales() const {
    return size_t(ceil_div(stored_columns, kGroupColumns)) * kTileRows;
  }
};

// A view of the planes a subnet reads; owns nothing.
struct PlaneMatrix : TiledShape {
  std::array<const uint8_t*, kMaxPlanes> planes{};  // planes[0] holds the most significant bit
  const uint16_t* scales = nullptr;                 // fp16 bits, [tile][stored group][32 rows]
  int num_planes = 0;
};

// A view of planes that have a coefficient each, for codes that are not evenly spaced, such as sums
// of powers of two:
//
//     W[row, column] = offset + sum over planes p of coefficient[p] * bit[p, row, column]
//
// with offset and coefficients of (row, group of 64 columns). Planes lie as in PlaneMatrix, the
// fp16 numbers of each plane and the offsets as its scales. An offset belongs to the planes read: a
// codec whose planes stand for -1 and 1 has another one for each prefix.
struct CoefficientMatrix : TiledShape {
  std::array<const uint8_t*, kMaxPlanes> planes{};
  std::array<const uint16_t*, kMaxPlanes> coefficients{};
  const uint16_t* offsets = nullptr;
  int num_planes = 0;
};

// A view of ternary weights W = scale * (digit - 1), five digits of base 3 in a byte: 1.6 bits and
// the scale, which is stored as in PlaneMatrix.
//
// Columns go by spans of 320; a span is a run of `quads` of 32 rows x 4 bytes, 16 of them, in the
// last span of the stored columns as few as hold it. Byte b of quad q holds the digits of columns
//     4 * (i * quads + q) + b,  i = 0 ... 4
// of the span, so that in a whole span digit i is one group of 64 columns. Four consecutive bytes
// are one row. With v the number of the digits, the first the most significant, the byte is
// x = ceil(v * 256 / 243): then 3 * x is 256 * digit + the byte of the digits that follow.
constexpr int kTernaryDigits = 5;
constexpr int kTernarySpan = kTernaryDigits * kGroupColumns;
struct TernaryMatrix : TiledShape {
  const uint8_t* bytes = nullptr;
  const uint16_t* scales = nullptr;

  int spans() const { return ceil_div(columns, kTernarySpan); }
  int quads(int span) const {
    const int rest = stored_columns - span * kTernarySpan;
    return rest >= kTernarySpan ? kGroupColumns / 4 : ceil_div(rest, 4 * kTernaryDigits);
  }
  static constexpr size_t span_stride_bytes() { return size_t(kGroupColumns) * kTileRows; }
  size_t tile_stride_ternary() const {
    const int last = (stored_columns - 1) / kTernarySpan;
    return size_t(last) * span_stride_bytes() + size_t(quads(last)) * 4 * kTileRows;
  }
};

// Activations of `tokens` tokens as int8 with one scale per group of 64 columns.
// x = scale * code, scale = max|x| / 127 (0 for an all-zero group), code = nearest-even rounding.
// Codes beyond `columns` are zero up to `stride` (a multiple of 64), so that short last groups need
// no special case in the kernels. Rows are 64-byte aligned.
struct Int8Activations {
  const int8_t* codes = nullptr;  // [tokens][stride]
  const float* scales = nullptr;  // [tokens][stride / 64]
  const int32_t* sums = nullptr;  // [tokens][stride / 64], sum of the codes of a group
  int tokens = 0;
  int stride = 0;
};

enum class Activation : int { kSilu = 0, kGelu = 1, kGeluTanh = 2 };

// kInt8 rounds each entry of each group to codes with one fp32 scale, as activations are rounded:
// x = scale * code, scale = max|x| / 127.
enum class CacheType : int { kFloat32 = 0, kFloat16 = 1, kInt8 = 2 };

// One query head of one token, and what it has gathered from the entries of a call.
struct AttentionRow {
  const float* query = nullptr;      // [head_dim], rotated
  float* output = nullptr;           // [head_dim], written
  const uint8_t* visible = nullptr;  // [end - begin], indexed from begin, or nullptr: all
  int begin = 0;                     // it sees the entries [begin, end) whose `visible` is not zero
  int end = 0;
  float maximum = 0.0f;  // written: of the scores; minus infinity where no entry was seen
  float total = 0.0f;    // written: sum of exp(score - maximum)
};

// Rows of one sequence against the entries [begin, end) of the cache of their KV group, of which
// `begin` is a multiple of kAttentionBlock. Over the entries that a row sees,
//   score_j = cap(scale * q.k_j) + log_weight_j,   output = sum_j exp(score_j - maximum) v_j,
// so that the results of several calls can be put together (ops/attention.h). A row's result does
// not depend on the others, to the last bit.
struct AttentionCall {
  const void* keys = nullptr;           // [capacity][head_dim] of `type`
  const void* values = nullptr;         // [capacity][head_dim] of `type`
  const float* key_scales = nullptr;    // [capacity], with kInt8
  const float* value_scales = nullptr;  // [capacity], with kInt8
  const float* log_weights = nullptr;   // [capacity] or nullptr (all 0)
  CacheType type = CacheType::kFloat16;
  // Coded caches (coded_bits > 0): entries before `folded`, a multiple of kAttentionBlock, are read
  // from coded units (cache_codes.h), those from it on lie in a ring of `ring_units` units of fp16
  // rows, entry e of unit u at row u % ring_units * kAttentionBlock + e % kAttentionBlock.
  const uint8_t* coded_keys = nullptr;    // [units]
  const uint8_t* coded_values = nullptr;  // [units]
  int coded_bits = 0;
  int folded = 0;
  int ring_units = 0;
  float* decoded = nullptr;  // room for decoded_floats(head_dim), one per thread
  int begin = 0;
  int end = 0;
  int head_dim = 0;
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  AttentionRow* rows = nullptr;
  int num_rows = 0;
};

// Entries whose scores become weights together. A multiple of every vector width.
constexpr int kAttentionBlock = 64;

// Keys and values of a block, and scales of one of them.
constexpr size_t decoded_floats(int head_dim) {
  return size_t(kAttentionBlock) * (2 * size_t(head_dim) + 2 * size_t(ceil_div(head_dim, 32)));
}

struct LowRankKernels;
struct ScoreKernels;

// The functions of one instruction-set path. All are pure and thread-safe; work is split between
// threads by tiles, tokens or heads outside.
struct Kernels {
  const char* isa;

  // One row of activations; `stride` as in Int8Activations.
  void (*quantize)(const float* x, int columns, int stride, int8_t* codes, float* scales,
                   int32_t* sums);

  // y[token * y_stride + row] for the rows of tiles [tile_begin, tile_end), rows < matrix.rows.
  // Per (row, token), groups in ascending order:
  //   n = 2 * step * sum_c(u * code) + (step - 256) * sum_of_codes      (exact in int32)
  //   y = fma(float(n), (0.5f * s) * activation_scale, y), y starting at 0
  // so that all paths agree to the last bit, for any number of tokens.
  // `scratch` holds planes_int8_scratch(matrix, tokens) bytes, 64-byte aligned, one per thread.
  void (*planes_int8)(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                      int tile_end, float* y, size_t y_stride, void* scratch);
  size_t (*planes_int8_scratch)(const PlaneMatrix& matrix, int tokens);

  // The same product with fp32 activations x[token * x_stride + column]: the exact reference mode.
  void (*planes_f32)(const PlaneMatrix& matrix, const float* x, int tokens, size_t x_stride,
                     int tile_begin, int tile_end, float* y, size_t y_stride);

  // y[row] = sum of scale * weight[group] over the groups of the rows of tiles [tile_begin,
  // tile_end), in any order, rows < matrix.rows.
  void (*sum_scales)(const PlaneMatrix& matrix, const float* weight, int tile_begin, int tile_end,
                     float* y);

  // Row `row` dequantized to fp32: an embedding lookup.
  void (*decode_row)(const PlaneMatrix& matrix, int row, float* y);

  // y = x / sqrt(mean(x^2) + epsilon) * (weight + offset); x and y may be the same.
  void (*rms_norm)(const float* x, const float* weight, float offset, float epsilon, int size,
                   float* y);

  // quantize(rms_norm(x)) to the last bit, without the row between them.
  void (*norm_quantize)(const float* x, const float* weight, float offset, float epsilon, int size,
                        int stride, int8_t* codes, float* scales, int32_t* sums);

  // Rotates one head in place, pairs (i, i + head_dim/2) by the angle with cosine[i], sine[i].
  void (*rotate)(float* head, const float* cosine, const float* sine, int head_dim);

  // y = activation(gate) * up; y may be gate or up.
  void (*gated)(Activation activation, const float* gate, const float* up, int size, float* y);

  // y += x
  void (*add)(const float* x, int size, float* y);

  // Stores `size` floats as one cache entry of `type`; only kInt8 writes `scale`.
  void (*store)(const float* x, int size, CacheType type, void* y, float* scale);

  void (*attend)(const AttentionCall& call);

  // y[token * y_stride + row] for the rows of tiles [tile_begin, tile_end), rows < matrix.rows.
  // Per (row, token), groups in ascending order, within them planes in ascending order:
  //   d[p] = sum_c(bit[p] * code)                                       (exact in int32)
  //   t = offset * float(sum_of_codes);  t = fma(float(d[p]), coefficient[p], t)
  //   y = fma(t, activation_scale, y), y starting at 0
  // so that all paths agree to the last bit, for any number of tokens.
  void (*coefficients_int8)(const CoefficientMatrix& matrix, const Int8Activations& x,
                            int tile_begin, int tile_end, float* y, size_t y_stride);

  // The same product with fp32 activations x[token * x_stride + column]: the exact reference mode.
  void (*coefficients_f32)(const CoefficientMatrix& matrix, const float* x, int tokens,
                           size_t x_stride, int tile_begin, int tile_end, float* y,
                           size_t y_stride);

  // Row `row` in fp32; the terms are added as W is written above, from left to right.
  void (*coefficients_row)(const CoefficientMatrix& matrix, int row, float* y);

  // y[token * y_stride + row] as above, per (row, token), groups in ascending order:
  //   n = sum_c((digit - 1) * code)                                     (exact in int32)
  //   y = fma(float(n), scale * activation_scale, y), y starting at 0
  void (*ternary_int8)(const TernaryMatrix& matrix, const Int8Activations& x, int tile_begin,
                       int tile_end, float* y, size_t y_stride);

  const LowRankKernels* low_rank;  // what adapters add to a product (low_rank.h)
  const ScoreKernels* scores;      // what is done to logits when a token is drawn (scores.h)
};

enum class Isa : int {
  kScalar,
  kAvx2,
  kAvx2Lookup,
  kAvxVnni,
  kAvx512Vnni,
  kAsimd,
  kAsimdLookup,
  kNeon,
  kI8mm
};

// The path of an instruction set, or nullptr where this build or this CPU has none.
const Kernels* kernels_for(Isa isa);

// Every path of this build on this CPU, fastest first; `scalar` is always the last.
std::vector<const Kernels*> available_kernels();

// The available path of this name. std::invalid_argument where there is none: `asked` (such as
// "PLIANT_ISA=abacus") begins its message, which names those there are.
const Kernels& kernels_named(const std::string& name, const std::string& asked);

// The fastest path, or the one that the environment variable PLIANT_ISA names, as kernels_named.
const Kernels& best_kernels();

}  // namespace pliant
