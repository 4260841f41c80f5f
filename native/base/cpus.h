// Which CPUs this process may use, and how much of them.
#pragma once

#include <string>
#include <vector>

namespace pliant {

// CPUs this process may run on, one of each physical core first, then their siblings.
std::vector<int> allowed_cpus();

// CPUs' worth of time that cgroups grant, rounded up; 0 without a quota. Looks in the cgroup that
// `self_cgroup` (the text of /proc/self/cgroup) names below `root` (/sys/fs/cgroup) and in those
// above it, since each level limits all below: version 2 and the cpu controller of version 1.
int quota_cpus(const std::string& root, const std::string& self_cgroup);

// Threads worth using: physical cores allowed, or fewer under a cgroup quota.
int default_threads();

}  // namespace pliant
