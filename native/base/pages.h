// Mapped bytes and the pages under them: asking for them early, keeping them, counting them.
#pragma once

#include <cstddef>
#include <vector>

namespace pliant {

// Bytes [begin, begin + size) of memory that somebody else owns.
struct ByteRange {
  const std::byte* begin = nullptr;
  size_t size = 0;
};

enum class Preload : int {
  kNone = 0,   // pages come in when first read
  kAhead = 1,  // the system is asked to read them in the background
  kAll = 2,    // they are in memory before the call returns
  kLock = 3,   // and stay there; std::bad_alloc where the system does not allow it
};

// The ranges in ascending order, those closer than `gap` bytes joined.
std::vector<ByteRange> joined(std::vector<ByteRange> ranges, size_t gap);

void preload(const std::vector<ByteRange>& ranges, Preload how);
// The pages under `ranges` without those under `kept`, as ranges of whole pages.
std::vector<ByteRange> pages_without(const std::vector<ByteRange>& ranges,
                                     const std::vector<ByteRange>& kept);
// Lets go of what kLock kept.
void unlock(const std::vector<ByteRange>& ranges);

// Bytes of the ranges that are in memory now, page cache included; all of them where the system
// does not say.
size_t resident_bytes(const std::vector<ByteRange>& ranges);

}  // namespace pliant
