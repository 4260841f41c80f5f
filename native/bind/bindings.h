// What each binding file adds to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace pliant {

void bind_kernels(nanobind::module_& m);
void bind_coefficients(nanobind::module_& m);  // to the module `kernels`
void bind_signs(nanobind::module_& m);         // to the module `kernels`
void bind_ternary(nanobind::module_& m);       // likewise
void bind_config(nanobind::module_& m);
void bind_low_rank(nanobind::module_& m);  // the class, and to `kernels` what it computes
void bind_weights(nanobind::module_& m);
void bind_engine(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);

}  // namespace pliant
