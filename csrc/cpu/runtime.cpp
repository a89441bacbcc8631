#include "cpu/runtime.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace convlm::cpu {
namespace {

constexpr size_t kAlignment = 64;
// Below this many multiply-adds a piece finishes before a second thread would have woken up.
constexpr int64_t kMultiplyAddsPerPiece = 200'000;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

// ThreadSanitizer does not see the barriers of torch's threads, which are not instrumented. It is
// told that a piece comes after what was before its region and before what follows that; of two
// pieces it knows nothing.
#if defined(__SANITIZE_THREAD__)
int entered, left;
struct Region {
  Region() { __tsan_release(&entered); }
  ~Region() { __tsan_acquire(&left); }
};
struct Piece {
  Piece() { __tsan_acquire(&entered); }
  ~Piece() { __tsan_release(&left); }
};
#else
struct Region {};
struct Piece {};
#endif

}  // namespace

void parallel(int64_t jobs, int64_t multiply_adds_per_job,
              void (*body)(const void*, int64_t, int64_t), const void* context) {
  const int64_t grain =
      std::max<int64_t>(1, kMultiplyAddsPerPiece / std::max<int64_t>(1, multiply_adds_per_job));
  if (jobs <= grain) {
    if (jobs > 0) body(context, 0, jobs);
    return;
  }
  const auto run = [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const Piece piece;
    body(context, begin, end);
  };
  [[maybe_unused]] const Region region;
  torch::stable::parallel_for(0, jobs, grain, run);
}

int64_t threads() { return torch::stable::get_num_threads(); }

void* scratch(Slot slot, size_t bytes) {
  thread_local Buffer buffers[static_cast<size_t>(Slot::count)];
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data = std::aligned_alloc(kAlignment, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.data;
}

}  // namespace convlm::cpu
