// Factors of a low-rank update under NumPy arrays, sizes checked.
#pragma once

#include "bind/arrays.h"
#include "kernels/low_rank.h"

namespace pliant {

class BoundLowRank {
 public:
  // a [rank * stride], a_scales [rank * stride / 64], b [tiles * rank * 32], b_scales [tiles * 32].
  // std::invalid_argument where an array has another size.
  BoundLowRank(Vector<int8_t> a, Vector<float> a_scales, Vector<int8_t> b, Vector<float> b_scales,
               int rank, int rows, int columns);

  const LowRank& view() const { return view_; }

 private:
  Vector<int8_t> a_, b_;
  Vector<float> a_scales_, b_scales_;
  LowRank view_;
};

}  // namespace pliant
