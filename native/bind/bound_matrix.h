// A plane matrix made of NumPy arrays: sizes checked, arrays kept alive.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <vector>

#include "kernels/signs.h"

namespace pliant {

using PlaneArray =
    nanobind::ndarray<const uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using ScaleArray =
    nanobind::ndarray<const uint16_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// `PlaneMatrix` of the Python module. Throws std::invalid_argument (ValueError) unless the arrays
// hold the stored shape and the prefix lies within it.
class BoundMatrix {
 public:
  BoundMatrix(std::vector<PlaneArray> planes, ScaleArray scales, int rows, int columns,
              int stored_rows, int stored_columns, const std::string& form);

  const CodedMatrix& view() const { return view_; }

 private:
  std::vector<PlaneArray> planes_;
  ScaleArray scales_;
  CodedMatrix view_;
};

}  // namespace pliant
