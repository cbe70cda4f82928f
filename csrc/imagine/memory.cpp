#include "imagine/memory.h"

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <cstdlib>
#include <cstring>
#else
#include <sys/mman.h>
#endif

namespace vlarft::imagine {

#if defined(__SANITIZE_ADDRESS__)
// The heap, so that the sanitizer watches both ends.
Buffer::Buffer(int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const size_t size = (static_cast<size_t>(bytes) + 63) / 64 * 64;
  data_ = std::aligned_alloc(64, size);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, size);
}

Buffer::~Buffer() { std::free(data_); }
#else
Buffer::Buffer(int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  // Advice only: where it is refused, small pages do.
  constexpr int64_t kHuge = int64_t{4} << 20;
  if (bytes >= kHuge) madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  data_ = data;
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}
#endif

}  // namespace vlarft::imagine
