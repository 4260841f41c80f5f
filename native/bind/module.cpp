// The extension module `pliant._native`: kernels for tests, plane matrices, cache, decoder and
// sampler.
#include "bind/bindings.h"

NB_MODULE(_native, m) {
  m.doc() = "Native engine of pliant; `pliant.runtime` is its checked face.";
  pliant::bind_kernels(m);
  pliant::bind_low_rank(m);
  pliant::bind_engine(m);
  pliant::bind_sampling(m);
}
