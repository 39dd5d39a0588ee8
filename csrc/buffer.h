// Memory of a kernel's own; std::vector<float> would be shared between instruction sets (isa.h).
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

namespace crs {
namespace CRS_ISA {
namespace {

// Zeroed memory at the start of a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) : data_(allocate(size)) {}
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  T* get() const { return data_; }

 private:
  static T* allocate(int64_t size) {
    const size_t bytes = size * sizeof(T);
    void* data = ::operator new(bytes, std::align_val_t{64});
    std::memset(data, 0, bytes);
    return static_cast<T*>(data);
  }

  T* data_;
};

// A list that holds at most `capacity` elements.
template <typename T>
class List {
 public:
  explicit List(int64_t capacity) : data_(capacity) {}
  List(const List&) = delete;
  ~List() {
    for (T& element : *this) element.~T();
  }
  template <typename... Args>
  void add(Args&&... args) {
    new (data_.get() + size_) T(static_cast<Args&&>(args)...);
    ++size_;
  }
  T& operator[](int64_t i) const { return data_.get()[i]; }
  T* begin() const { return data_.get(); }
  T* end() const { return data_.get() + size_; }

 private:
  Buffer<T> data_;
  int64_t size_ = 0;
};

}  // namespace
}  // namespace CRS_ISA
}  // namespace crs
