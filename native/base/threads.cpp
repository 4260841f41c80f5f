#include "base/threads.h"

#include <chrono>
#include <stdexcept>
#include <string>

#include "base/cpus.h"

#if defined(__linux__)
#  include <pthread.h>
#  include <sched.h>
#endif

namespace pliant {
namespace {

// Looks at a flag before sleeping; each takes 10 to 40 ns. A caller waits for workers a little
// longer than they differ. Workers wait for the next phase longer, over what a caller does between
// two tokens, since waking one takes as long as a phase; after a tenth of a millisecond an idle
// process costs nothing.
constexpr int kCallerSpins = 1000;
// Looks before the caller takes what nobody has begun: more than workers differ in beginning.
constexpr int kLateSpins = 50;
constexpr int kWorkerSpins = 3000;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// The value once it is no longer `old`, or `old` after so many looks.
uint32_t spin_while(const std::atomic<uint32_t>& value, uint32_t old, int num_spins) {
  for (int spin = 0; spin < num_spins; ++spin) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause_cpu();
  }
  return old;
}

double seconds_now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// The CPU this thread runs on, or -1 where the system does not say.
int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

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

ThreadPool::ThreadPool(int threads) : size_(threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument(std::to_string(threads) + " threads asked; use 1 to " +
                                std::to_string(kMaxThreads));
  }
  std::vector<int> cpus = allowed_cpus();
  // With more threads than CPUs a spinning thread keeps a working one from its CPU.
  const bool own_cpus = size_t(threads) <= cpus.size();
  spins_ = own_cpus;
  if (own_cpus) {
    cpus.resize(size_t(threads));
    cpus_ = std::move(cpus);
  }
  turns_ = std::make_unique<Turn[]>(size_t(threads));
  threads_.reserve(size_t(threads) - 1);
  try {
    for (int worker = 1; worker < threads; ++worker) {
      threads_.emplace_back(&ThreadPool::run_worker, this, worker);
      if (own_cpus) pin_to(threads_.back(), cpus_[size_t(worker)]);
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

void ThreadPool::step_aside() {
  if (cpus_.size() < 2) return;
  const int cpu = current_cpu();
  if (cpu == cpus_[0]) return;
  for (size_t worker = 1; worker < cpus_.size(); ++worker) {
    if (cpus_[worker] != cpu) continue;
    std::swap(cpus_[0], cpus_[worker]);
    pin_to(threads_[worker - 1], cpus_[worker]);
    return;
  }
}

void ThreadPool::run_phase(Phase phase, void* function) {
  const std::lock_guard<std::mutex> turn(callers_);
  phase_ = phase;
  function_ = function;
  num_running_.store(uint32_t(size_ - 1), std::memory_order_relaxed);
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  for (int worker = 1; worker < size_; ++worker)
    turns_[size_t(worker)].state.store(2 * generation, std::memory_order_release);
  generation_.store(generation, std::memory_order_release);
  generation_.notify_all();
  run_guarded(0);
  const uint32_t others = num_running_.load(std::memory_order_acquire);
  if (others != 0 && spin_while(num_running_, others, kLateSpins) == others)
    run_late_shares(generation);
  uint32_t running = num_running_.load(std::memory_order_acquire);
  while (running != 0) {
    const uint32_t now = spin_while(num_running_, running, spins_ ? kCallerSpins : 0);
    if (now == running) {  // a worker has lost its CPU: sleep, and note how long
      const double start = seconds_now();
      num_running_.wait(running, std::memory_order_acquire);
      slept_seconds_ += seconds_now() - start;
    }
    running = num_running_.load(std::memory_order_acquire);
  }
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
}

// Whether the share of a worker in a phase was still free; then it is the asker's. Until it is
// done, the caller waits, so that the phase stays as it is; a late worker finds another generation.
bool ThreadPool::begin_share(int worker, uint32_t generation) {
  uint32_t expected = 2 * generation;
  return turns_[size_t(worker)].state.compare_exchange_strong(
      expected, expected + 1, std::memory_order_acquire, std::memory_order_relaxed);
}

void ThreadPool::run_late_shares(uint32_t generation) {
  for (int worker = 1; worker < size_; ++worker) {
    if (!begin_share(worker, generation)) continue;
    run_guarded(worker);
    num_running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void ThreadPool::run_worker(int worker) {
  uint32_t seen = 0;
  for (;;) {
    uint32_t now = spin_while(generation_, seen, spins_ ? kWorkerSpins : 0);
    if (now == seen) {
      generation_.wait(seen, std::memory_order_acquire);
      now = generation_.load(std::memory_order_acquire);
    }
    seen = now;
    if (stopping_) return;
    if (!begin_share(worker, now)) continue;
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
