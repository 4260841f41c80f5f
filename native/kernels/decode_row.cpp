// One row of a matrix to fp32, four columns at a time: the same on every instruction set, since a
// row is one 4-byte lane of each plane's chunk and is read for one token only.
#include <algorithm>
#include <cstring>

#include "base/half.h"
#include "kernels/paths.h"

namespace pliant {

void decode_row_by_lanes(const PlaneMatrix& matrix, int row, float* y) {
  const int tile = row / kTileRows, row_in_tile = row % kTileRows;
  const size_t lane = size_t(tile) * matrix.tile_stride_bytes() + size_t(row_in_tile) * 4;
  const uint16_t* scales = matrix.scales + size_t(tile) * matrix.tile_stride_scales() + row_in_tile;
  const float step = float(1 << (kMaxPlanes - matrix.num_planes));
  for (int chunk = 0; chunk < matrix.chunks(); ++chunk) {
    uint32_t lanes[kMaxPlanes];
    for (int plane = 0; plane < matrix.num_planes; ++plane) {
      std::memcpy(&lanes[plane], matrix.planes[size_t(plane)] + lane + size_t(chunk) * kChunkBytes,
                  sizeof lanes[plane]);
    }
    const float scale = half_to_float(scales[chunk / 2 * kTileRows]);
    for (int field = 0; field < 8; ++field) {
      uint32_t codes = 0;  // of four columns, one in each byte
      for (int plane = 0; plane < matrix.num_planes; ++plane) {
        codes = 2 * codes + ((lanes[plane] >> field) & 0x01010101u);
      }
      const int column = chunk * kChunkColumns + field * 4;
      for (int byte = 0; byte < std::min(4, matrix.columns - column); ++byte) {
        const float code = float((codes >> (8 * byte)) & 0xffu);
        y[column + byte] = scale * (step * (code + 0.5f) - 128.0f);
      }
    }
  }
}

}  // namespace pliant
