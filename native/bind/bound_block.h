// One kept block as Python builds it.
#pragma once

#include <vector>

#include "bind/arrays.h"
#include "engine/weights.h"

namespace pliant {

using FloatVector =
    nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

inline std::vector<float> copy_of(const FloatVector& vector) {
  return {vector.data(), vector.data() + vector.size()};
}

// Matrices and vectors are set by the names of the artifact; the arrays are kept.
struct BoundBlock {
  BlockWeights weights;
  nanobind::list matrices;
};

}  // namespace pliant
