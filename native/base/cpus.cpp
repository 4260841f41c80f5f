#include "base/cpus.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>

#include "base/threads.h"

#if defined(__linux__)
#  include <sched.h>
#endif

namespace pliant {
namespace {

// The first CPU of the physical core of `cpu`; `cpu` itself where the kernel does not say.
int first_sibling(int cpu) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                     "/topology/thread_siblings_list");
  int first = cpu;
  file >> first;
  return file.fail() ? cpu : first;
}

// CPUs' worth of one cgroup, of either version; 0 without a quota.
double quota_of(const std::string& folder) {
  double quota = 0, period = 0;
  std::ifstream both(folder + "/cpu.max");
  if (both >> quota >> period && quota > 0 && period > 0) return quota / period;
  std::ifstream first(folder + "/cpu.cfs_quota_us"), second(folder + "/cpu.cfs_period_us");
  if (first >> quota && second >> period && quota > 0 && period > 0) return quota / period;
  return 0;  // "max" and -1 mean none
}

// The least quota of a cgroup and those above it, up to the root.
double least_quota(const std::string& root, std::string path) {
  double least = 0;
  for (;;) {
    const double quota = quota_of(root + path);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
    if (path.empty()) return least;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
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

int quota_cpus(const std::string& root, const std::string& self_cgroup) {
  double least = 0;
  std::istringstream lines(self_cgroup);
  for (std::string line; std::getline(lines, line);) {
    // "0::/path" of version 2, "4:cpu,cpuacct:/path" of version 1
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    // Between commas on both sides, so that "cpu" is not found in "cpuset".
    const std::string controllers = ',' + line.substr(first + 1, second - first - 1) + ',';
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) continue;
    const double quota = least_quota(controllers == ",," ? root : root + "/cpu", path);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
  }
  return int(std::ceil(least));
}

int default_threads() {
  const std::vector<int> cpus = allowed_cpus();
  std::set<int> cores;
  for (int cpu : cpus) cores.insert(first_sibling(cpu));
  std::ifstream file("/proc/self/cgroup");
  const std::string self{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const int quota = quota_cpus("/sys/fs/cgroup", self);
  const int count = quota > 0 ? std::min(int(cores.size()), quota) : int(cores.size());
  return std::clamp(count, 1, kMaxThreads);
}

}  // namespace pliant
