#include "base/pages.h"

#include <algorithm>
#include <cstdint>
#include <new>

#if defined(__linux__) || defined(__APPLE__)
#  include <sys/mman.h>
#  include <unistd.h>
#endif

namespace pliant {
namespace {

// Between two ranges closer than this, asking for the bytes between them too costs less than asking
// twice: systems read files ahead in larger pieces. Only a request may be so generous: what lies
// between may not be mapped.
constexpr size_t kReadAheadGap = 65536;

size_t page_size() {
#if defined(__linux__) || defined(__APPLE__)
  return size_t(sysconf(_SC_PAGESIZE));
#else
  return 4096;
#endif
}

// The whole pages around a range.
struct Pages {
  std::byte* begin;
  size_t size;

  explicit Pages(const ByteRange& range) {
    const size_t page = page_size();
    const uintptr_t first = reinterpret_cast<uintptr_t>(range.begin) / page * page;
    const uintptr_t end = reinterpret_cast<uintptr_t>(range.begin) + range.size;
    begin = reinterpret_cast<std::byte*>(first);
    size = (end - first + page - 1) / page * page;
  }
};

std::vector<ByteRange> whole_pages(const std::vector<ByteRange>& ranges) {
  std::vector<ByteRange> pages;
  for (const ByteRange& range : ranges)
    if (range.size > 0) pages.push_back({Pages(range).begin, Pages(range).size});
  return joined(std::move(pages), 0);
}

// Reads one byte of each page.
void touch(const Pages& pages) {
  const size_t page = page_size();
  for (size_t offset = 0; offset < pages.size; offset += page)
    (void)*const_cast<const volatile std::byte*>(pages.begin + offset);
}

}  // namespace

std::vector<ByteRange> joined(std::vector<ByteRange> ranges, size_t gap) {
  std::sort(ranges.begin(), ranges.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  std::vector<ByteRange> result;
  for (const ByteRange& range : ranges) {
    if (range.size == 0) continue;
    if (!result.empty() && range.begin <= result.back().begin + result.back().size + gap) {
      const size_t end = size_t(range.begin - result.back().begin) + range.size;
      result.back().size = std::max(result.back().size, end);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

void preload(const std::vector<ByteRange>& ranges, Preload how) {
  if (how == Preload::kNone) return;
#if defined(__linux__) || defined(__APPLE__)
  // First all are asked for, so that the system reads while the first are waited for.
  for (const ByteRange& range : joined(ranges, kReadAheadGap)) {
    const Pages pages(range);
    madvise(pages.begin, pages.size, MADV_WILLNEED);  // best effort
  }
#endif
  if (how == Preload::kAhead) return;
  for (size_t index = 0; index < ranges.size(); ++index) {
    const Pages pages(ranges[index]);
    touch(pages);
#if defined(__linux__) || defined(__APPLE__)
    if (how == Preload::kLock && mlock(pages.begin, pages.size) != 0) {
      unlock({ranges.begin(), ranges.begin() + std::ptrdiff_t(index)});
      throw std::bad_alloc();
    }
#endif
  }
}

std::vector<ByteRange> pages_without(const std::vector<ByteRange>& ranges,
                                     const std::vector<ByteRange>& kept) {
  const std::vector<ByteRange> removed = whole_pages(kept);
  std::vector<ByteRange> result;
  for (const ByteRange& range : whole_pages(ranges)) {
    const std::byte* begin = range.begin;
    const std::byte* const end = range.begin + range.size;
    for (const ByteRange& hole : removed) {
      if (hole.begin + hole.size <= begin || hole.begin >= end) continue;
      if (hole.begin > begin) result.push_back({begin, size_t(hole.begin - begin)});
      begin = std::min(end, hole.begin + hole.size);
    }
    if (begin < end) result.push_back({begin, size_t(end - begin)});
  }
  return result;
}

void unlock(const std::vector<ByteRange>& ranges) {
#if defined(__linux__) || defined(__APPLE__)
  for (const ByteRange& range : ranges) {
    const Pages pages(range);
    munlock(pages.begin, pages.size);
  }
#else
  (void)ranges;
#endif
}

size_t resident_bytes(const std::vector<ByteRange>& ranges) {
  size_t bytes = 0;
#if defined(__linux__)
  const size_t page = page_size();
  std::vector<unsigned char> flags;
  for (const ByteRange& range : ranges) {
    const Pages pages(range);
    flags.assign(pages.size / page, 1);
    mincore(pages.begin, pages.size, flags.data());
    const std::byte* const end = range.begin + range.size;
    for (size_t index = 0; index < flags.size(); ++index) {
      if ((flags[index] & 1) == 0) continue;
      const std::byte* const first =
          std::max<const std::byte*>(pages.begin + index * page, range.begin);
      bytes += size_t(std::min<const std::byte*>(pages.begin + (index + 1) * page, end) - first);
    }
  }
#else
  for (const ByteRange& range : ranges) bytes += range.size;
#endif
  return bytes;
}

}  // namespace pliant
