// NumPy arrays in and out of the kernels that are bound one by one.
#pragma once

#include <nanobind/ndarray.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/threads.h"
#include "kernels/kernels.h"
#include "ops/product.h"

namespace pliant {

namespace nb = nanobind;

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Result = nb::ndarray<nb::numpy, T>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// A new array that owns its memory, filled with zeros.
template <typename T>
Result<T> zeros(std::initializer_list<size_t> shape) {
  size_t size = 1;
  for (size_t extent : shape) size *= extent;
  T* data = new T[size]();
  const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Result<T>(data, shape, owner);
}

inline const Kernels& kernels_named(const std::string& name) { return kernels_named(name, name); }

// Splits the tiles of a product over a pool; `multiply(begin, end)` does a share.
template <typename Multiply>
void for_shares(const TiledShape& view, int threads, const Multiply& multiply) {
  const nb::gil_scoped_release release;
  ThreadPool pool(threads);
  pool.run([&](int worker, int workers) {
    const Share share = share_of(view.tiles(), worker, workers);
    multiply(share.begin, share.end);
  });
}

// [rows, columns] of the planes read, `most` of them at most, as the kernels see it.
inline PlaneMatrix plane_matrix(const std::vector<Vector<uint8_t>>& planes,
                                const Vector<uint16_t>& scales, int rows, int columns,
                                int stored_columns, int most) {
  if (planes.empty() || planes.size() > size_t(most))
    throw std::invalid_argument("1 to " + std::to_string(most) + " planes");
  require(rows > 0 && columns > 0 && columns <= stored_columns, "0 < columns <= stored_columns");
  PlaneMatrix view;
  view.num_planes = int(planes.size());
  view.rows = rows;
  view.columns = columns;
  view.stored_columns = stored_columns;
  const size_t tiles = size_t(view.tiles());
  for (size_t plane = 0; plane < planes.size(); ++plane) {
    require(planes[plane].size() >= tiles * view.tile_stride_bytes(), "a plane is too short");
    view.planes[plane] = planes[plane].data();
  }
  require(scales.size() >= tiles * view.tile_stride_scales(), "the scales are too few");
  view.scales = scales.data();
  return view;
}

// x[T, columns] as a product reads it.
inline QuantizedRows quantized_rows(const Kernels& kernels, const Matrix<float>& x, int columns) {
  require(x.shape(1) == size_t(columns), "x must be [tokens, columns]");
  QuantizedRows rows;
  rows.reserve(int(x.shape(0)), columns);
  for (int token = 0; token < int(x.shape(0)); ++token) {
    rows.quantize(kernels, x.data() + size_t(token) * size_t(columns), token, columns,
                  {0, columns});
  }
  return rows;
}

}  // namespace pliant
