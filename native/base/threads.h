// Threads that stay alive between phases of work: one static split and one barrier per phase.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace pliant {

// CPUs this process may run on, one of each physical core first, then their siblings.
std::vector<int> allowed_cpus();

// Threads worth using: physical cores allowed, or fewer under a cgroup quota.
int default_threads();

constexpr int kMaxThreads = 256;

// The part [begin, end) of `count` items that falls to `worker` of `workers`; sizes differ by one.
struct Share {
  int begin;
  int end;
};
inline Share share_of(int count, int worker, int workers) {
  return {int(int64_t(count) * worker / workers), int(int64_t(count) * (worker + 1) / workers)};
}

class ThreadPool {
 public:
  // `threads` in [1, kMaxThreads], counting the caller of run(); std::invalid_argument otherwise.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls work(worker, workers) once for each worker and returns when all are done; the caller is
  // worker 0. The first exception thrown is thrown again here. Callers from several threads take
  // turns; `work` must not call run() of the same pool.
  template <typename Work>
  void run(Work&& work) {
    if (size_ == 1) {
      work(0, 1);
      return;
    }
    using Function = std::remove_reference_t<Work>;
    run_phase([](void* function, int worker,
                 int workers) { (*static_cast<Function*>(function))(worker, workers); },
              const_cast<void*>(static_cast<const void*>(&work)));
  }

 private:
  using Phase = void (*)(void* function, int worker, int workers);

  void run_phase(Phase phase, void* function);
  void run_worker(int worker);
  void run_guarded(int worker);
  void stop();

  const int size_;
  int num_spins_ = 0;
  std::vector<std::thread> threads_;
  std::mutex callers_;

  Phase phase_ = nullptr;
  void* function_ = nullptr;
  bool stopping_ = false;
  std::mutex error_mutex_;
  std::exception_ptr error_;

  // On lines of their own: one is written by the caller, the other by every worker.
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> num_running_{0};
};

}  // namespace pliant
