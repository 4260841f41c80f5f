// Rates of this machine and of the product kernel on it, measured with the threads of the engine.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pliant {

// Seconds per product in each of `rounds`, over `num_matrices` random matrices visited in turn:
// many come from memory, one or two stay in cache. A round is the median of its products, so that
// those which lost the processor to others do not count. `isa` as in PLIANT_ISA;
// std::invalid_argument if it is not available.
std::vector<double> measure_product(const std::string& isa, int num_planes, int rows, int columns,
                                    int tokens, int threads, int num_matrices, int rounds);

// Seconds to read `num_bytes` of memory in each round, in four streams per thread; in pieces of
// 4 MiB, whose median counts. std::invalid_argument below that.
std::vector<double> measure_read(size_t num_bytes, int threads, int rounds);

// Seconds to read about `num_bytes` of memory in each round as a layout of planes and scales would:
// every step takes step_bytes[i] of run i, and `streams` places of each run advance by turns in
// each thread. The line `prefetch_bytes` ahead is asked for (0: none); pieces as in measure_read.
// std::invalid_argument for steps that are not whole lines, or none at all.
std::vector<double> measure_walk(const std::vector<size_t>& step_bytes, int streams,
                                 size_t prefetch_bytes, size_t num_bytes, int threads, int rounds);

// The most multiplications and additions (two operations each) per second that the dot product
// instruction of a path does, in registers; with AVX2 the products of bytes added in pairs
// (maddubs), without the sums over them. Empty where the path has no measure.
std::vector<double> measure_dot_peak(const std::string& isa, int threads, int rounds);

// Seconds of a phase in which no thread has anything to do, the mean over `phases` in each round.
std::vector<double> measure_barrier(int threads, int phases, int rounds);

}  // namespace pliant
