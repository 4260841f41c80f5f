#include "bind/bound_matrix.h"

#include <stdexcept>
#include <string>

namespace pliant {
namespace {

void check_size(const char* what, size_t found, size_t needed) {
  if (found < needed)
    throw std::invalid_argument(std::string(what) + " has " + std::to_string(found) +
                                " bytes; the stored shape needs " + std::to_string(needed) + ".");
}

std::string shape_text(int rows, int columns) {
  return std::to_string(rows) + " x " + std::to_string(columns);
}

}  // namespace

BoundMatrix::BoundMatrix(std::vector<PlaneArray> planes, ScaleArray scales, int rows, int columns,
                         int stored_rows, int stored_columns, const std::string& form)
    : planes_(std::move(planes)), scales_(std::move(scales)) {
  if (planes_.empty() || planes_.size() > size_t(kMaxPlanes))
    throw std::invalid_argument(std::to_string(planes_.size()) +
                                " planes were given; a matrix has 1 to 8.");
  if (rows < 1 || columns < 1 || rows > stored_rows || columns > stored_columns)
    throw std::invalid_argument("A prefix of " + shape_text(rows, columns) +
                                " was asked for; the matrix is " +
                                shape_text(stored_rows, stored_columns) + ".");
  if (form != "uniform" && form != "signs")
    throw std::invalid_argument("Planes of the form " + form + "; there are uniform and signs.");
  view_.form = form == "signs" ? PlaneForm::kSigns : PlaneForm::kUniform;
  if (view_.form == PlaneForm::kSigns && planes_.size() > size_t(kSignPlanes))
    throw std::invalid_argument(std::to_string(planes_.size()) +
                                " planes of signs were given; there are scales for 4.");
  view_.scales = scales_.data();
  view_.num_planes = int(planes_.size());
  view_.rows = rows;
  view_.columns = columns;
  view_.stored_columns = stored_columns;
  const size_t stored_tiles = size_t(ceil_div(stored_rows, kTileRows));
  for (size_t plane = 0; plane < planes_.size(); ++plane) {
    check_size("A plane", planes_[plane].size(), stored_tiles * view_.tile_stride_bytes());
    view_.planes[plane] = planes_[plane].data();
  }
  check_size("The array of scales", scales_.size() * sizeof(uint16_t),
             stored_tiles * view_.tile_stride_scales() * sizeof(uint16_t));
  if (reinterpret_cast<uintptr_t>(view_.scales) % sizeof(uint16_t) != 0)
    throw std::invalid_argument("The scales begin at an odd address; copy them to an array.");
}

}  // namespace pliant
