// NumPy arrays in and out of the kernels that are bound one by one.
#pragma once

#include <nanobind/ndarray.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

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
