// The least weight of a nucleus: top-p without putting a vocabulary in order.
#pragma once

#include "kernels/scores.h"
#include "ops/candidates.h"

namespace pliant {

// Weights above `weight` are in, and of those equal to it the first `ties`.
struct NucleusEdge {
  float weight = 0.0f;
  int ties = 0;
};

// The edge of the likeliest of `weights` that have less than `mass` before them; among equals the
// earlier ones are likelier. Weights are from 0 to 1, at least one is above 0, and `mass` is above
// 0. `inside` and `ordered` are room.
NucleusEdge nucleus_edge(const ScoreKernels& kernels, const Candidates& weights, double mass,
                         Candidates& inside, std::vector<float>& ordered);

// Finds the tokens that can be in the nucleus of `top_p` of `total`, the sum of all weights, and
// not many more. Those whose score is below `least` need not be found. Candidates are then weights.
void collect_nucleus(const ScoreKernels& kernels, const Scores& scores, const Weighing& weighing,
                     double top_p, double total, float least, DrawRoom& room);

}  // namespace pliant
