// A block of memory aligned to a cache line, which is also the widest vector.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace pliant {

constexpr size_t kAlignment = 64;

// Owns `size` values of a trivial type, uninitialized unless filled. Grows, never shrinks.
template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size) { reserve(size); }
  AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~AlignedBuffer() { release(); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  size_t size_bytes() const { return size_ * sizeof(T); }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }

  // Makes room for `size` values; what was held is lost when the block has to grow.
  T* reserve(size_t size) {
    if (size > size_) {
      if (size > PTRDIFF_MAX / sizeof(T)) throw std::bad_alloc();
      release();
      data_ = static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{kAlignment}));
      size_ = size;
    }
    return data_;
  }

 private:
  void swap(AlignedBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  void release() noexcept {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t{kAlignment});
    data_ = nullptr;
    size_ = 0;
  }

  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pliant
