#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;

struct Copy {
  void* shared;
  const void* global;
  int bytes;
  bool zero;
};

enum class State { ready, at_warp, at_block, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  void* sanitizer_stack = nullptr;
  State state = State::done;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  int arrived = 0;
  const char* name = nullptr;
  void* operands[kWarp];
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  void* scheduler_sanitizer_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;
  std::unique_ptr<unsigned char, Free> shared;
  int shared_bytes = 0;
  int threads = 0, current = 0;
  unsigned block = 0, grid = 0;
};

thread_local Machine machine;
thread_local unsigned order_seed = 0;

Fiber& fiber() { return *machine.fibers[machine.current]; }

std::string thread_name(int thread) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(machine.block);
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("CUDA emulator: " + what);
}

// AddressSanitizer must be told of each change of stacks.
void leave_to(ucontext_t& from, ucontext_t& to, void** keep, const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(keep, stack, bytes);
#else
  (void)keep, (void)stack, (void)bytes;
#endif
  swapcontext(&from, &to);
}

void arrive(void* kept, const void** old_stack, size_t* old_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(kept, old_stack, old_bytes);
#else
  (void)kept, (void)old_stack, (void)old_bytes;
#endif
}

void enter() {
  Machine& m = machine;
  arrive(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
  try {
    (*m.body)();
    const Fiber& f = fiber();
    if (!f.uncommitted.empty() || !f.groups.empty())
      fail(thread_name(m.current) + " ended with asynchronous copies that it never waited for");
  } catch (...) {
    m.error = std::current_exception();
  }
  fiber().state = State::done;
  leave_to(fiber().context, m.scheduler, nullptr, m.scheduler_stack, m.scheduler_stack_bytes);
}

void resume(int thread) {
  Machine& m = machine;
  m.current = thread;
  Fiber& f = fiber();
  leave_to(m.scheduler, f.context, &m.scheduler_sanitizer_stack, f.stack.get(), kStackBytes);
  arrive(m.scheduler_sanitizer_stack, nullptr, nullptr);
}

void wait(State state) {
  Machine& m = machine;
  Fiber& f = fiber();
  f.state = state;
  leave_to(f.context, m.scheduler, &f.sanitizer_stack, m.scheduler_stack, m.scheduler_stack_bytes);
  arrive(f.sanitizer_stack, &m.scheduler_stack, &m.scheduler_stack_bytes);
}

void prepare(int thread) {
  Machine& m = machine;
  if (static_cast<int>(m.fibers.size()) <= thread) m.fibers.push_back(std::make_unique<Fiber>());
  Fiber& f = *m.fibers[thread];
  f.uncommitted.clear();
  f.groups.clear();
  f.state = State::ready;
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.get();
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, &enter, 0);
}

std::vector<int> thread_order(int threads) {
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  if (order_seed == 1) std::reverse(order.begin(), order.end());
  if (order_seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937(order_seed));
  return order;
}

// All threads wait, or are done: lets those at the barrier on, or says why they wait forever.
void release_block() {
  Machine& m = machine;
  for (int t = 0; t < m.threads; ++t) {
    if (m.fibers[t]->state == State::at_warp)
      fail(thread_name(t) + " waits for its warp at " + m.warps[t / kWarp].name +
           ", which other lanes do not reach");
    if (m.fibers[t]->state == State::done)
      fail(thread_name(t) + " ended while others wait at a barrier of the block");
  }
  for (int t = 0; t < m.threads; ++t) m.fibers[t]->state = State::ready;
}

void run_block(const std::vector<int>& order) {
  Machine& m = machine;
  for (int i = 0; i < m.threads; ++i) prepare(i);
  m.warps.assign((m.threads + kWarp - 1) / kWarp, Warp{});
  std::memset(m.shared.get(), 0xff, m.shared_bytes);  // NaN in every type
  for (int done = 0; done < m.threads;) {
    bool progress = false;
    for (const int t : order) {
      if (m.fibers[t]->state != State::ready) continue;
      resume(t);
      if (m.error) std::rethrow_exception(std::exchange(m.error, nullptr));
      progress = true;
      done += m.fibers[t]->state == State::done;
    }
    if (!progress) release_block();
  }
}

}  // namespace

Index thread_index() { return {static_cast<unsigned>(machine.current)}; }
Index block_index() { return {machine.block}; }
Index block_dimension() { return {static_cast<unsigned>(machine.threads)}; }
Index grid_dimension() { return {machine.grid}; }
unsigned char* shared_memory() { return machine.shared.get(); }
void set_order(unsigned seed) { order_seed = seed; }

void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  constexpr int64_t kMostBlocks = 64;  // few, so that kernels walk more tiles than there are blocks
  if (threads < 1 || threads > 1024) fail(std::to_string(threads) + " threads in a block");
  if (shared_bytes > 227 * 1024) fail(std::to_string(shared_bytes) + " bytes of shared memory");
  Machine& m = machine;
  m.body = &body;
  m.threads = threads;
  m.grid = static_cast<unsigned>(std::min(blocks, kMostBlocks));
  m.shared_bytes = shared_bytes;
  const std::vector<int> order = thread_order(threads);
  for (m.block = 0; m.block < m.grid; ++m.block) {
    void* shared = nullptr;  // of exactly this size, so that an overrun is seen
    if (posix_memalign(&shared, 128, std::max(shared_bytes, 1)) != 0) throw std::bad_alloc();
    m.shared.reset(static_cast<unsigned char*>(shared));
    run_block(order);
  }
}

void synchronize_block() { wait(State::at_block); }

void collective(const char* name, void* operands, void (*together)(void* const* operands)) {
  Machine& m = machine;
  Warp& warp = m.warps[m.current / kWarp];
  if (m.threads % kWarp != 0) fail("a block whose threads are no whole number of warps");
  if (warp.arrived > 0 && std::strcmp(warp.name, name) != 0)
    fail(thread_name(m.current) + " is at " + name + ", another lane of its warp at " + warp.name);
  warp.name = name;
  warp.operands[m.current % kWarp] = operands;
  if (++warp.arrived < kWarp) return wait(State::at_warp);
  warp.arrived = 0;
  together(warp.operands);
  const int first = m.current / kWarp * kWarp;
  for (int t = first; t < first + kWarp; ++t) m.fibers[t]->state = State::ready;
}

void check_access(const char* name, const void* address, int bytes, int alignment, bool shared) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at % alignment != 0)
    fail(thread_name(machine.current) + ": " + name + " at an address that is no multiple of " +
         std::to_string(alignment));
  const auto begin = reinterpret_cast<uintptr_t>(machine.shared.get());
  if (shared && (at < begin || at + bytes > begin + machine.shared_bytes))
    fail(thread_name(machine.current) + ": " + name + " outside shared memory");
}

void copy_later(void* shared, const void* global, int bytes, bool zero) {
  fiber().uncommitted.push_back({shared, global, bytes, zero});
}

void commit_copies() { fiber().groups.push_back(std::exchange(fiber().uncommitted, {})); }

void wait_for_copies(int groups_left) {
  std::deque<std::vector<Copy>>& groups = fiber().groups;
  for (; static_cast<int>(groups.size()) > groups_left; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      if (copy.zero)
        std::memset(copy.shared, 0, copy.bytes);
      else
        std::memcpy(copy.shared, copy.global, copy.bytes);
    }
}

float from_float16(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<float>(value);
}

uint16_t to_float16(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

uint16_t to_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulator
