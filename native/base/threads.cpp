#include "base/threads.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#  include <pthread.h>
#  include <sched.h>
#endif

namespace pliant {
namespace {

// About 30 microseconds of waiting: longer than the serial stretches between the phases of a
// token, short enough that an idle process and a worker robbed of its core cost nothing.
constexpr int kNumSpins = 1000;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Waits while `value` is `old`: first awake, then asleep in the kernel.
uint32_t wait_for_change(const std::atomic<uint32_t>& value, uint32_t old, int num_spins) {
  for (int spin = 0; spin < num_spins; ++spin) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause_cpu();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

#if defined(__linux__)
// The first CPU of the physical core of `cpu`; `cpu` itself where the kernel does not say.
int first_sibling(int cpu) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                     "/topology/thread_siblings_list");
  int first = cpu;
  file >> first;
  return file.fail() ? cpu : first;
}

// CPUs' worth of time the cgroup grants, or `fallback` without a quota.
int cgroup_cpus(int fallback) {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || period <= 0) return fallback;  // "max": not a number
  return std::max(1, int(std::ceil(quota / period)));
}
#endif

void pin_to(std::thread& thread, int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);  // best effort
#else
  (void)thread, (void)cpu;
#endif
}

}  // namespace

std::vector<int> allowed_cpus() {
  std::vector<int> cores, siblings;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    std::set<int> seen;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &set)) continue;
      (seen.insert(first_sibling(cpu)).second ? cores : siblings).push_back(cpu);
    }
  }
#endif
  cores.insert(cores.end(), siblings.begin(), siblings.end());
  if (cores.empty()) {
    const int count = std::max(1u, std::thread::hardware_concurrency());
    for (int cpu = 0; cpu < count; ++cpu) cores.push_back(cpu);
  }
  return cores;
}

int default_threads() {
  const std::vector<int> cpus = allowed_cpus();
  int count = int(cpus.size());
#if defined(__linux__)
  std::set<int> cores;
  for (int cpu : cpus) cores.insert(first_sibling(cpu));
  count = std::min(int(cores.size()), cgroup_cpus(count));
#endif
  return std::clamp(count, 1, kMaxThreads);
}

ThreadPool::ThreadPool(int threads) : size_(threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument(std::to_string(threads) + " threads asked; use 1 to " +
                                std::to_string(kMaxThreads));
  }
  const std::vector<int> cpus = allowed_cpus();
  // With more threads than CPUs a spinning thread keeps a working one from its CPU.
  const bool own_cpus = size_t(threads) <= cpus.size();
  num_spins_ = own_cpus ? kNumSpins : 0;
  threads_.reserve(size_t(threads) - 1);
  try {
    for (int worker = 1; worker < threads; ++worker) {
      threads_.emplace_back(&ThreadPool::run_worker, this, worker);
      // The caller keeps its own affinity: the scheduler moves it off the CPUs taken here.
      if (own_cpus) pin_to(threads_.back(), cpus[size_t(worker)]);
    }
  } catch (...) {  // the system has no more threads: end those that began
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_phase(Phase phase, void* function) {
  const std::lock_guard<std::mutex> turn(callers_);
  phase_ = phase;
  function_ = function;
  num_running_.store(uint32_t(size_ - 1), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  run_guarded(0);
  uint32_t running = num_running_.load(std::memory_order_acquire);
  while (running != 0) running = wait_for_change(num_running_, running, num_spins_);
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::run_worker(int worker) {
  uint32_t seen = 0;
  for (;;) {
    seen = wait_for_change(generation_, seen, num_spins_);
    if (stopping_) return;
    run_guarded(worker);
    if (num_running_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_running_.notify_one();
  }
}

void ThreadPool::run_guarded(int worker) {
  try {
    phase_(function_, worker, size_);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(error_mutex_);
    if (error_ == nullptr) error_ = std::current_exception();
  }
}

}  // namespace pliant
