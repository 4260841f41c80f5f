// The steps of products by tables with AVX2.
//
// A byte shuffle looks up within halves of 16 bytes and one table serves all bytes of it, so the
// bytes of a chunk are first brought apart by column % 4: four vectors of 8 rows x 4 bytes become
// four vectors of 32 rows. Their lower half has the rows 0-3, 8-11, 16-19, 24-27 and their upper
// half the others; interleaving halves twice, to 16 and to 32 bits, puts the rows in order.
#include "kernels/lookup.h"
#include "kernels/simd_avx2.h"

namespace pliant {
namespace {

struct LookupAvx2 {
  using Simd = Avx2;
  using Int = Simd::Int;
  static constexpr int kWords = 2;  // vectors of 16-bit sums of 32 rows

  static Int add16(Int a, Int b) { return _mm256_add_epi16(a, b); }

  // The same 16 bytes in both halves.
  static Int twice(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  // Tables of 16 columns: that of column c % 4 goes to 2 * (c % 4).
  static void make_tables(const int8_t* codes, uint8_t* tables) {
    // Words [column % 4] of column / 4 = 0, 1 in the lower and 2, 3 in the upper half; with their
    // sums, the four of the first two bits of a number and the four of the last two.
    const Int words =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const Int sums = add16(words, _mm256_shuffle_epi32(words, 0x4e));
    const Int zero_first = _mm256_unpacklo_epi16(_mm256_setzero_si256(), words);
    const Int second_both = _mm256_unpackhi_epi16(words, sums);
    const Int low = _mm256_unpacklo_epi32(zero_first, second_both);
    const Int high = _mm256_unpackhi_epi32(zero_first, second_both);
    store_table(_mm256_permute4x64_epi64(low, 0x88), tables);
    store_table(_mm256_permute4x64_epi64(low, 0xdd), tables + 2 * kTableBytes);
    store_table(_mm256_permute4x64_epi64(high, 0x88), tables + 4 * kTableBytes);
    store_table(_mm256_permute4x64_epi64(high, 0xdd), tables + 6 * kTableBytes);
  }

  // `parts`, in each half: the sums of none, one, other and both of the first two activations,
  // then of the last two.
  static void store_table(Int parts, uint8_t* table) {
    const Int first =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7));
    const Int last =
        _mm256_setr_epi8(8, 9, 8, 9, 8, 9, 8, 9, 10, 11, 10, 11, 10, 11, 10, 11,  //
                         12, 13, 12, 13, 12, 13, 12, 13, 14, 15, 14, 15, 14, 15, 14, 15);
    const Int sums = add16(_mm256_set1_epi16(512), add16(_mm256_shuffle_epi8(parts, first),
                                                         _mm256_shuffle_epi8(parts, last)));
    const Int lower = Simd::bit_and(sums, _mm256_set1_epi16(31));
    const Int packed = _mm256_packus_epi16(lower, Simd::shift_right16<5>(sums));
    Simd::store_bytes(table, _mm256_permute4x64_epi64(packed, 0xd8));
  }

  // rows[column % 4] = the bytes of 32 rows.
  static PLIANT_INLINE void bring_apart(const uint8_t* chunk, Int (&rows)[4]) {
    const Int by_column = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    Int eight[4];
    unroll<4>([&](auto i) PLIANT_BODY {
      eight[i] = _mm256_shuffle_epi8(Simd::load_bytes(chunk + 32 * i), by_column);
    });
    const Int low01 = _mm256_unpacklo_epi32(eight[0], eight[1]);
    const Int high01 = _mm256_unpackhi_epi32(eight[0], eight[1]);
    const Int low23 = _mm256_unpacklo_epi32(eight[2], eight[3]);
    const Int high23 = _mm256_unpackhi_epi32(eight[2], eight[3]);
    rows[0] = _mm256_unpacklo_epi64(low01, low23);
    rows[1] = _mm256_unpackhi_epi64(low01, low23);
    rows[2] = _mm256_unpacklo_epi64(high01, high23);
    rows[3] = _mm256_unpackhi_epi64(high01, high23);
  }

  // words = the sums over one chunk of a plane, and their excess.
  static PLIANT_INLINE void look_up(const uint8_t* chunk, const uint8_t* tables,
                                    Int (&words)[kWords]) {
    Int rows[4], lower, upper;
    bring_apart(chunk, rows);
    unroll<4>([&](auto column) PLIANT_BODY {
      const uint8_t* table = tables + column * 2 * kTableBytes;
      const Int nibbles[2] = {Simd::bit_and(rows[column], Simd::set8(15)),
                              Simd::bit_and(Simd::shift_right16<4>(rows[column]), Simd::set8(15))};
      unroll<2>([&](auto half) PLIANT_BODY {
        const uint8_t* at = table + half * kTableBytes;
        const Int low = _mm256_shuffle_epi8(twice(at), nibbles[half]);
        const Int high = _mm256_shuffle_epi8(twice(at + 16), nibbles[half]);
        constexpr bool kBegins = column == 0 && half == 0;
        lower = kBegins ? low : _mm256_add_epi8(lower, low);
        upper = kBegins ? high : _mm256_add_epi8(upper, high);
      });
    });
    const Int weights = _mm256_set1_epi16(0x2001);  // 1 and 32
    words[0] = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(lower, upper), weights);
    words[1] = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(lower, upper), weights);
  }

  static PLIANT_INLINE void widen(const Int (&words)[kWords], Int (&wide)[4]) {
    const Int zero = _mm256_setzero_si256();
    unroll<kWords>([&](auto i) PLIANT_BODY {
      wide[2 * i] = _mm256_unpacklo_epi16(words[i], zero);
      wide[2 * i + 1] = _mm256_unpackhi_epi16(words[i], zero);
    });
  }
};

}  // namespace

void multiply_by_lookup_avx2(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                             int tile_end, float* y, size_t y_stride, void* scratch) {
  multiply_by_lookup<LookupAvx2>(matrix, x, tile_begin, tile_end, y, y_stride, scratch);
}

size_t lookup_scratch_avx2(const PlaneMatrix& matrix, int tokens) {
  return lookup_scratch(matrix, tokens);
}

}  // namespace pliant
