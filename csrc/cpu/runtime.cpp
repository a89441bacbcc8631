#include "cpu/runtime.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace convlm::cpu {
namespace {

constexpr size_t kAlignment = 64;
// Below this many multiply-adds a piece finishes before a second thread would have woken up.
constexpr int64_t kMultiplyAddsPerPiece = 200'000;

thread_local bool alone = false;

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
  if (jobs <= grain || alone) {
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

Alone::Alone(bool wanted) : before_(alone) { alone = alone || wanted; }
Alone::~Alone() { alone = before_; }

int64_t threads() { return alone ? 1 : torch::stable::get_num_threads(); }

int64_t threads_for(int64_t multiply_adds) {
  return std::max<int64_t>(1, std::min(threads(), multiply_adds / kMultiplyAddsPerPiece));
}

void* scratch(Slot slot, size_t bytes) {
  thread_local Buffer buffers[static_cast<size_t>(Slot::count)];
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data = std::aligned_alloc(kAlignment, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
    // Lanes whose results nobody reads are multiplied too, whatever lay in that memory before.
    std::memset(buffer.data, 0, rounded);
    buffer.bytes = rounded;
  }
  return buffer.data;
}

bool loads_outpace_products() {
#if defined(__x86_64__)
  static const bool in_halves = [] {
    constexpr unsigned kZen3And4 = 0x19;  // of which only Zen 4 has AVX-512
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0 || ebx != signature_AMD_ebx) return false;
    __get_cpuid(1, &eax, &ebx, &ecx, &edx);
    return (eax >> 8 & 0xf) + (eax >> 20 & 0xff) == kZen3And4;
  }();
  return in_halves;
#else
  return false;
#endif
}

const int64_t* descending_order(const float* values, int64_t count) {
  return sorted_numbers(values, count);
}
const int64_t* descending_order(const double* values, int64_t count) {
  return sorted_numbers(values, count);
}

}  // namespace convlm::cpu
