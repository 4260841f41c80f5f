// Factors of a low-rank update under NumPy arrays, sizes checked.
#pragma once

#include "bind/arrays.h"
#include "kernels/low_rank.h"

namespace pliant {

class BoundLowRank {
 public:
  // a [blocks * stride * 8], a_scales [blocks * stride / 64 * 8], b [tiles * rank * 32], b_scales
  // [tiles * 32], fp16 bits: as kernels/low_rank.h has them.
  // std::invalid_argument where an array has another size.
  BoundLowRank(Vector<int8_t> a, Vector<float> a_scales, Vector<int8_t> b,
               Vector<uint16_t> b_scales, int rank, int rows, int columns);

  const LowRank& view() const { return view_; }

 private:
  Vector<int8_t> a_, b_;
  Vector<float> a_scales_;
  Vector<uint16_t> b_scales_;
  LowRank view_;
};

}  // namespace pliant
