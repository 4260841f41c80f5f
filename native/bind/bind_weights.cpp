// Plane matrices and blocks as Python objects.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>

#include "bind/bindings.h"
#include "bind/bound_block.h"
#include "bind/bound_low_rank.h"
#include "bind/bound_matrix.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pliant {
namespace {

Linear* linear_of(BlockWeights& block, const std::string& name) {
  const std::map<std::string, Linear*> linears = {
      {"q", &block.q},       {"k", &block.k},   {"v", &block.v},      {"o", &block.o},
      {"gate", &block.gate}, {"up", &block.up}, {"down", &block.down}};
  const auto found = linears.find(name);
  return found == linears.end() ? nullptr : found->second;
}

std::vector<float>* norm_of(BlockWeights& block, const std::string& name) {
  const std::map<std::string, std::vector<float>*> norms = {
      {"attention_norm", &block.attention_norm},
      {"attention_post_norm", &block.attention_post_norm},
      {"q_norm", &block.q_norm},
      {"k_norm", &block.k_norm},
      {"mlp_norm", &block.mlp_norm},
      {"mlp_post_norm", &block.mlp_post_norm}};
  const auto found = norms.find(name);
  return found == norms.end() ? nullptr : found->second;
}

void set_matrix(BoundBlock& block, const std::string& name, const BoundMatrix& matrix) {
  Linear* linear = linear_of(block.weights, name);
  if (linear == nullptr) throw std::invalid_argument("A block has no matrix " + name + ".");
  linear->matrix = matrix.view();
  block.matrices.append(nb::find(matrix));
}

void set_low_rank(BoundBlock& block, const std::string& name, const BoundLowRank& update) {
  Linear* linear = linear_of(block.weights, name);
  if (linear == nullptr) throw std::invalid_argument("A block has no matrix " + name + ".");
  linear->low_rank = update.view();
  block.matrices.append(nb::find(update));
}

void set_vector(BoundBlock& block, const std::string& name, const FloatVector& vector) {
  const std::string suffix = ".bias";
  std::vector<float>* target = norm_of(block.weights, name);
  if (target == nullptr && name.ends_with(suffix)) {
    Linear* linear = linear_of(block.weights, name.substr(0, name.size() - suffix.size()));
    if (linear != nullptr) target = &linear->bias;
  }
  if (target == nullptr) throw std::invalid_argument("A block has no vector " + name + ".");
  *target = copy_of(vector);
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::class_<BoundMatrix>(m, "PlaneMatrix", "The planes and scales of a prefix of a matrix.")
      .def(nb::init<std::vector<PlaneArray>, ScaleArray, int, int, int, int, const std::string&>(),
           "planes"_a.noconvert(), "scales"_a.noconvert(), "rows"_a, "columns"_a, "stored_rows"_a,
           "stored_columns"_a, "form"_a = "uniform")
      .def_prop_ro("rows", [](const BoundMatrix& matrix) { return matrix.view().rows; })
      .def_prop_ro("columns", [](const BoundMatrix& matrix) { return matrix.view().columns; })
      .def_prop_ro("num_planes",
                   [](const BoundMatrix& matrix) { return matrix.view().num_planes; });
  nb::class_<BoundBlock>(m, "Block", "The weights of one kept block.")
      .def(
          "__init__",
          [](BoundBlock* self, int block, int groups, int neurons, int rotation, int window) {
            new (self) BoundBlock();
            self->weights.block = block;
            self->weights.groups = groups;
            self->weights.neurons = neurons;
            self->weights.rotation = rotation;
            self->weights.window = window;
          },
          "block"_a, "groups"_a, "neurons"_a, "rotation"_a, "window"_a)
      .def("set_matrix", &set_matrix, "name"_a, "matrix"_a)
      .def("set_vector", &set_vector, "name"_a, "vector"_a)
      .def("set_low_rank", &set_low_rank, "name"_a, "update"_a);
}

}  // namespace pliant
