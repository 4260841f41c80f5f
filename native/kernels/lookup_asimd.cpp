// The steps of products by tables with the vectors of any 64-bit ARM: loading four-way interleaved
// bytes brings them apart by column % 4, and rows stay in order.
#include "kernels/lookup.h"
#include "kernels/simd_neon.h"

namespace pliant {
namespace {

struct LookupAsimd {
  using Simd = Neon;
  using Int = Simd::Int;
  static constexpr int kWords = 4;   // vectors of 16-bit sums of 32 rows
  static constexpr int kHalves = 2;  // of the tile: 16 rows in a vector of bytes

  static uint16x8_t words_of(Int value) { return vreinterpretq_u16_s32(value); }
  static Int add16(Int a, Int b) {
    return vreinterpretq_s32_u16(vaddq_u16(words_of(a), words_of(b)));
  }

  // Tables of 16 columns: that of column c % 4 goes to 2 * (c % 4).
  static void make_tables(const int8_t* codes, uint8_t* tables) {
    alignas(16) static constexpr int16_t kBits[3][8] = {
        {0, 1, 0, 1, 0, 1, 0, 1}, {0, 0, 1, 1, 0, 0, 1, 1}, {0, 0, 0, 0, 1, 1, 1, 1}};
    const int16x8_t bits[3] = {vld1q_s16(kBits[0]), vld1q_s16(kBits[1]), vld1q_s16(kBits[2])};
    for (int column = 0; column < 4; ++column) {
      int16x8_t low = vdupq_n_s16(512);
      unroll<3>([&](auto bit)
                    PLIANT_BODY { low = vmlaq_n_s16(low, bits[bit], codes[4 * bit + column]); });
      const int16x8_t high = vaddq_s16(low, vdupq_n_s16(codes[12 + column]));
      const uint16x8_t first = vreinterpretq_u16_s16(low), last = vreinterpretq_u16_s16(high);
      uint8_t* table = tables + size_t(column) * 2 * kTableBytes;
      vst1q_u8(table, vandq_u8(vcombine_u8(vmovn_u16(first), vmovn_u16(last)), vdupq_n_u8(31)));
      vst1q_u8(table + 16, vcombine_u8(vshrn_n_u16(first, 5), vshrn_n_u16(last, 5)));
    }
  }

  // words = the sums over one chunk of a plane, and their excess.
  static PLIANT_INLINE void look_up(const uint8_t* chunk, const uint8_t* tables,
                                    Int (&words)[kWords]) {
    uint8x16_t lower[kHalves], upper[kHalves];
    const uint8x16x4_t rows[kHalves] = {vld4q_u8(chunk), vld4q_u8(chunk + 64)};
    unroll<4>([&](auto column) PLIANT_BODY {
      const uint8_t* table = tables + column * 2 * kTableBytes;
      const uint8x16_t parts[4] = {vld1q_u8(table), vld1q_u8(table + 16), vld1q_u8(table + 32),
                                   vld1q_u8(table + 48)};
      unroll<kHalves>([&](auto half) PLIANT_BODY {
        const uint8x16_t first = vandq_u8(rows[half].val[column], vdupq_n_u8(15));
        const uint8x16_t last = vshrq_n_u8(rows[half].val[column], 4);
        const uint8x16_t low = vqtbl1q_u8(parts[0], first), high = vqtbl1q_u8(parts[1], first);
        lower[half] = column == 0 ? low : vaddq_u8(lower[half], low);
        upper[half] = column == 0 ? high : vaddq_u8(upper[half], high);
        lower[half] = vaddq_u8(lower[half], vqtbl1q_u8(parts[2], last));
        upper[half] = vaddq_u8(upper[half], vqtbl1q_u8(parts[3], last));
      });
    });
    unroll<kHalves>([&](auto half) PLIANT_BODY {
      words[2 * half] = vreinterpretq_s32_u16(
          vaddw_u8(vshll_n_u8(vget_low_u8(upper[half]), 5), vget_low_u8(lower[half])));
      words[2 * half + 1] =
          vreinterpretq_s32_u16(vaddw_high_u8(vshll_high_n_u8(upper[half], 5), lower[half]));
    });
  }

  static PLIANT_INLINE void widen(const Int (&words)[kWords], Int (&wide)[8]) {
    unroll<kWords>([&](auto i) PLIANT_BODY {
      wide[2 * i] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words_of(words[i]))));
      wide[2 * i + 1] = vreinterpretq_s32_u32(vmovl_high_u16(words_of(words[i])));
    });
  }
};

}  // namespace

void multiply_by_lookup_asimd(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                              int tile_end, float* y, size_t y_stride, void* scratch) {
  multiply_by_lookup<LookupAsimd>(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
}

size_t lookup_scratch_asimd(const PlaneMatrix& matrix, int tokens) {
  return lookup_scratch(matrix, tokens);
}

}  // namespace pliant
