// Planes times int8 activations of many tokens with AVX2: bound by arithmetic.
//
// Tile by tile, kSpanColumns columns at a time, the planes are unpacked once to bytes, which stay
// in the first-level cache: 16 KiB for each half of the tile. Against them go blocks of 16 rows x
// up to 6 tokens, whose sums fill the registers: one load of codes serves 6 tokens, one broadcast
// serves 16 rows. Activations are packed in the order the inner loop reads them, so that no two
// lines meet in one cache set, and stay in the second-level cache for up to kSuperTokens tokens.
//
// Why the sums are exact: pack_avx2.h. Other arithmetic as in planes_avx512.cpp; the term of the
// zero point becomes sum / 2 (with two pieces 17 / 2 of it), exact all the same.
#include <algorithm>
#include <cstring>

#include "kernels/pack_avx2.h"
#include "kernels/planes_avx2.h"

namespace pliant {
namespace {

// Codes of the chunks of one tile in a span; a missing second chunk is zero.
template <int kPlanes>
void unpack_span(const PlaneMatrix& matrix, int tile, int group_begin, int group_end,
                 uint8_t* codes) {
  constexpr int kPieces = num_pieces(kPlanes), kPiecePlanes = piece_planes(kPlanes);
  const uint8_t* planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes();
  }
  const int num_chunks = (group_end - group_begin) * 2;
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    const int source = group_begin * 2 + chunk;
    uint8_t* out = codes + chunk / 2 * kPieces * kPieceBytes + chunk % 2 * (kPieceBytes / 2);
#pragma GCC unroll 1
    for (int vector = 0; vector < kTileRows / Simd::kLanes; ++vector) {
      const size_t offset = size_t(source) * kChunkBytes + size_t(vector) * 32;
      uint8_t* to = out + vector / 2 * kPieces * kSpanCodeBytes + vector % 2 * 32;
      unroll<kPieces>([&](auto piece) PLIANT_BODY {
        if (source == matrix.chunks()) {
          unroll<kFields>([&](auto field) PLIANT_BODY {
            Simd::store_bytes(to + piece * kPieceBytes + field * kQuadBytes, Simd::set32(0));
          });
          return;
        }
        for_each_field<Simd, kPiecePlanes, 0>(
            planes + piece * kPiecePlanes, offset, [&](auto field, Int bytes) PLIANT_BODY {
              Simd::store_bytes(to + piece * kPieceBytes + field * kQuadBytes, bytes);
            });
      });
    }
  }
}

// Adds the products of one quad. Assembly, since gcc would broadcast ahead of need and spill sums.
PLIANT_INLINE void add_products(Int low, Int high, const int8_t* activations, Int& sum_low,
                                Int& sum_high) {
  Int product, other;
  asm("vpbroadcastd %[four], %[other]\n\t"
      "vpmaddubsw %[other], %[low], %[product]\n\t"
      "vpmaddubsw %[other], %[high], %[other]\n\t"
      "vpaddw %[product], %[low_sum], %[low_sum]\n\t"
      "vpaddw %[other], %[high_sum], %[high_sum]"
      : [low_sum] "+x"(sum_low), [high_sum] "+x"(sum_high), [product] "=&x"(product),
        [other] "=&x"(other)
      : [four] "m"(four_at(activations)), [low] "x"(low), [high] "x"(high));
}

// dots[half][token] = kWeight * the centred products of one group, or += if kAdd.
template <int kWindow, int kWeight, bool kAdd, int kTokens>
PLIANT_INLINE void dot_windows(const uint8_t* codes, const int8_t* activations,
                               const int32_t* starts, Int (&dots)[2][kTokens]) {
  constexpr int kWindows = kQuads / kWindow;
  const Int weight = _mm256_set1_epi16(kWeight);
  if constexpr (kWindows > 1) {
    unroll<2 * kTokens>([&](auto i) PLIANT_BODY { dots[i % 2][i / 2] = Simd::set32(0); });
  }
#pragma GCC unroll 1
  for (int window = 0; window < kWindows; ++window) {
    Int sums[2][kTokens];
    unroll<kTokens>([&](auto token) PLIANT_BODY {
      sums[0][token] = sums[1][token] = Simd::set32(starts[token * kWindows + window]);
    });
    unroll<kWindow>([&](auto quad) PLIANT_BODY {
      const Int low = Simd::load_bytes(codes + quad * kQuadBytes);
      const Int high = Simd::load_bytes(codes + quad * kQuadBytes + 32);
      unroll<kTokens>([&](auto token) PLIANT_BODY {
        add_products(low, high, activations + token * kGroupColumns + quad * 4, sums[0][token],
                     sums[1][token]);
      });
    });
    unroll<2 * kTokens>([&](auto i) PLIANT_BODY {
      Int& dot = dots[i % 2][i / 2];
      const Int wide = _mm256_madd_epi16(sums[i % 2][i / 2], weight);
      dot = kAdd || kWindows > 1 ? Simd::add32(dot, wide) : wide;
    });
    codes += kWindow * kQuadBytes;
    activations += kWindow * 4;
  }
}

// sums[token][row] += the products of the groups of a span, for 16 rows.
template <int kWindow, int kPieces, int kTokens>
void multiply_block(const uint8_t* codes, const Block& block, const uint16_t* row_scales,
                    int groups, float* sums) {
  constexpr int kWindows = kQuads / kWindow;
  const int8_t* activations = block.activations;
  const int32_t* starts = block.starts;
  for (int group = 0; group < groups; ++group) {
    Int dots[2][kTokens];
    if constexpr (kPieces == 2) {
      dot_windows<kWindow, 16, false, kTokens>(codes, activations, starts, dots);
      dot_windows<kWindow, 1, true, kTokens>(codes + kPieceBytes, activations, starts, dots);
    } else {
      dot_windows<kWindow, 1, false, kTokens>(codes, activations, starts, dots);
    }
    codes += kPieces * kPieceBytes;
    activations += kTokens * kGroupColumns;
    starts += kTokens * kWindows;
    const __m256 scales[2] = {Simd::load_half(row_scales + group * kTileRows),
                              Simd::load_half(row_scales + group * kTileRows + Simd::kLanes)};
    unroll<2 * kTokens>([&](auto i) PLIANT_BODY {
      constexpr int kHalf = i % 2, kToken = i / 2;
      const __m256 zero = Simd::set(block.zeros[group * kTokens + kToken]);
      const __m256 scale = Simd::set(block.scales[group * kTokens + kToken]);
      float* out = sums + kToken * kBlockRows + kHalf * Simd::kLanes;
      const __m256 centred = Simd::add(Simd::to_float(dots[kHalf][kToken]), zero);
      Simd::store(out, Simd::fma(centred, Simd::mul(scales[kHalf], scale), Simd::load(out)));
    });
    // Keeps gcc from holding the sums on the stack beside their place.
    asm volatile("" ::: "memory");
  }
}

template <int kWindow, int kPieces>
void multiply_block_of(int tokens, const uint8_t* codes, const Block& block,
                       const uint16_t* row_scales, int groups, float* sums) {
  using Function = void (*)(const uint8_t*, const Block&, const uint16_t*, int, float*);
  static constexpr Function kFunctions[kBlockTokens] = {
      multiply_block<kWindow, kPieces, 1>, multiply_block<kWindow, kPieces, 2>,
      multiply_block<kWindow, kPieces, 3>, multiply_block<kWindow, kPieces, 4>,
      multiply_block<kWindow, kPieces, 5>, multiply_block<kWindow, kPieces, 6>};
  kFunctions[tokens - 1](codes, block, row_scales, groups, sums);
}

// Brings a share of the planes that the next tile will unpack into the second-level cache.
void prefetch_share(const PlaneMatrix& matrix, const Part& part, int tile, int share,
                    int num_shares) {
  const size_t begin = size_t(part.group_begin) * 2 * kChunkBytes;
  const size_t lines =
      size_t(std::min(part.group_end * 2, matrix.chunks())) * kChunkBytes / 64 - begin / 64;
  const size_t first = lines * size_t(share) / size_t(num_shares);
  const size_t last = lines * size_t(share + 1) / size_t(num_shares);
  for (int plane = 0; plane < matrix.num_planes; ++plane) {
    const uint8_t* from =
        matrix.planes[size_t(plane)] + size_t(tile) * matrix.tile_stride_bytes() + begin;
    for (size_t line = first; line < last; ++line) _mm_prefetch(from + line * 64, _MM_HINT_T1);
  }
}

// All tokens of a part against 16 rows, whose codes are unpacked.
template <int kPlanes>
void multiply_rows(const Part& part, const uint8_t* codes, const uint16_t* row_scales,
                   const Scratch& scratch, int num_rows, float* y, size_t y_stride,
                   const auto& between) {
  constexpr int kWindows = kQuads / window_quads(kPlanes);
  const Blocks blocks{part.count};
  for (int block = 0; block < blocks.count(); ++block) {
    between(block, blocks.count());
    const int begin = blocks.begin(block);
    const int size = blocks.begin(block + 1) - begin;
    const size_t base = size_t(begin) * size_t(part.groups());
    const Block packed{scratch.activations + base * kGroupColumns, scratch.starts + base * kWindows,
                       scratch.zeros + base, scratch.scales + base};
    alignas(64) float sums[kBlockTokens * kBlockRows] = {};
    float* out = y + size_t(part.token + begin) * y_stride;
    const size_t row_bytes = size_t(num_rows) * sizeof(float);
    for (int token = 0; part.group_begin > 0 && token < size; ++token) {
      std::memcpy(sums + token * kBlockRows, out + size_t(token) * y_stride, row_bytes);
    }
    multiply_block_of<window_quads(kPlanes), num_pieces(kPlanes)>(size, codes, packed, row_scales,
                                                                  part.groups(), sums);
    for (int token = 0; token < size; ++token) {
      std::memcpy(out + size_t(token) * y_stride, sums + token * kBlockRows, row_bytes);
    }
  }
}

template <int kPlanes>
void multiply_part(const PlaneMatrix& matrix, const Part& part, int tile, int tile_end,
                   const Scratch& scratch, float* y, size_t y_stride) {
  unpack_span<kPlanes>(matrix, tile, part.group_begin, part.group_end, scratch.codes);
  const uint16_t* row_scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales() +
                               size_t(part.group_begin) * kTileRows;
  for (int half = 0; half < kBlocksOfTile; ++half) {
    const int row = tile * kTileRows + half * kBlockRows;
    const int num_rows = std::min(matrix.rows - row, kBlockRows);
    if (num_rows <= 0) return;
    const auto prefetch = [&](int block, int count) {
      if (tile + 1 >= tile_end) return;
      prefetch_share(matrix, part, tile + 1, half * count + block, kBlocksOfTile * count);
    };
    multiply_rows<kPlanes>(part, scratch.codes + half * num_pieces(kPlanes) * kSpanCodeBytes,
                           row_scales + half * kBlockRows, scratch, num_rows, y + row, y_stride,
                           prefetch);
  }
}

template <int kPlanes>
void prefetch_group(const PlaneMatrix& matrix, int tile, int group) {
  const size_t ahead = size_t(tile) * matrix.tile_stride_bytes() + size_t(group) * 2 * kChunkBytes +
                       kPrefetchBytes / kPlanes;
  for (size_t plane = 0; plane < kPlanes; ++plane) {
    for (size_t line = 0; line < 2 * kChunkBytes; line += 64) {
      _mm_prefetch(matrix.planes[plane] + ahead + line, _MM_HINT_T0);
    }
  }
}

// One tile against a few tokens, whose activations `all` are packed for all columns.
template <int kPlanes>
void stream_tile(const PlaneMatrix& matrix, const Part& all, int tile, const Scratch& scratch,
                 float* y, size_t y_stride) {
  constexpr int kWindows = kQuads / window_quads(kPlanes);
  const Blocks blocks{all.count};
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales();
  alignas(64) float sums[kBlocksOfTile][kStreamTokens * kBlockRows] = {};
  for (int group = 0; group < all.group_end; group += kStreamGroups) {
    const int group_end = std::min(group + kStreamGroups, all.group_end);
    for (int each = group; each < group_end; ++each) {
      prefetch_group<kPlanes>(matrix, tile, each);
      unpack_span<kPlanes>(matrix, tile, each, each + 1,
                           scratch.codes + (each - group) * num_pieces(kPlanes) * kPieceBytes);
    }
    for (int block = 0; block < blocks.count(); ++block) {
      const int begin = blocks.begin(block);
      const int size = blocks.begin(block + 1) - begin;
      const size_t first = size_t(begin * all.group_end + group * size);
      const Block packed{scratch.activations + first * kGroupColumns,
                         scratch.starts + first * kWindows, scratch.zeros + first,
                         scratch.scales + first};
      for (int half = 0; half < kBlocksOfTile; ++half) {
        multiply_block_of<window_quads(kPlanes), num_pieces(kPlanes)>(
            size, scratch.codes + half * num_pieces(kPlanes) * kSpanCodeBytes, packed,
            scales + group * kTileRows + half * kBlockRows, group_end - group,
            sums[half] + begin * kBlockRows);
      }
    }
  }
  for (int half = 0; half < kBlocksOfTile; ++half) {
    const int row = tile * kTileRows + half * kBlockRows;
    const int num_rows = std::min(matrix.rows - row, kBlockRows);
    for (int token = 0; num_rows > 0 && token < all.count; ++token) {
      std::memcpy(y + size_t(token) * y_stride + row, sums[half] + token * kBlockRows,
                  size_t(num_rows) * sizeof(float));
    }
  }
}

void stream_tiles(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin, int tile_end,
                  const Scratch& scratch, float* y, size_t y_stride) {
  const Part all{0, x.tokens, 0, matrix.groups()};
  pack_activations(matrix, x, all, scratch);
  with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      stream_tile<planes>(matrix, all, tile, scratch, y, y_stride);
    }
  });
}

}  // namespace

void multiply_token_blocks_avx2(const PlaneMatrix& matrix, const Int8Activations& x, int tile_begin,
                                int tile_end, float* y, size_t y_stride, void* memory) {
  const Scratch scratch(memory, matrix.groups(), x.tokens);
  if (x.tokens <= kStreamTokens) {
    return stream_tiles(matrix, x, tile_begin, tile_end, scratch, y, y_stride);
  }
  const int num_parts = ceil_div(x.tokens, kSuperTokens);
  for (int super = 0; super < num_parts; ++super) {
    const int token = int(int64_t(x.tokens) * super / num_parts);
    const int token_end = int(int64_t(x.tokens) * (super + 1) / num_parts);
    for (int group = 0; group < matrix.groups(); group += kSpanGroups) {
      const Part part{token, token_end - token, group,
                      std::min(group + kSpanGroups, matrix.groups())};
      pack_activations(matrix, x, part, scratch);
      with_planes(matrix.num_planes, [&](auto planes) PLIANT_BODY {
        for (int tile = tile_begin; tile < tile_end; ++tile) {
          multiply_part<planes>(matrix, part, tile, tile_end, scratch, y, y_stride);
        }
      });
    }
  }
}

size_t token_blocks_scratch_avx2(const PlaneMatrix& matrix, int tokens) {
  const int stream_tokens = std::min(tokens, kStreamTokens);  // may take more than more tokens
  return std::max(Scratch(nullptr, matrix.groups(), tokens).num_bytes,
                  Scratch(nullptr, matrix.groups(), stream_tokens).num_bytes);
}

}  // namespace pliant
