#include "cpu/runtime.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>

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

template <class T>
const int64_t* sorted_numbers(const T* values, int64_t count) {
  int64_t* order = static_cast<int64_t*>(scratch(Slot::order, sizeof(int64_t) * count));
  std::iota(order, order + count, int64_t{0});
  std::sort(order, order + count, [&](int64_t a, int64_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  });
  return order;
}

}  // namespace

void parallel(int64_t jobs, int64_t multiply_adds_per_job,
              void (*body)(const void*, int64_t, int64_t), const void* context) {
  const int64_t grain =
      std::max<int64_t>(1, kMultiplyAddsPerPiece / std::max<int64_t>(1, multiply_adds_per_job));
  if (jobs <= grain) {
    if (jobs > 0) body(context, 0, jobs);
    return;
  }
  torch::stable::parallel_for(0, jobs, grain,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
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

const int64_t* descending_order(const float* values, int64_t count) {
  return sorted_numbers(values, count);
}
const int64_t* descending_order(const double* values, int64_t count) {
  return sorted_numbers(values, count);
}

}  // namespace convlm::cpu
