#include "emulator.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "guarded.h"

namespace emulator {
namespace {

constexpr int kWarp = 32;

struct Copy {
  void* shared;
  const void* global;
  int bytes;

  void happen() const { std::memcpy(shared, global, bytes); }
};

enum class State { ready, at_warp, at_block, done };

struct Thread {
  Fiber fiber;
  State state = State::done;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  int arrived = 0;
  const char* name = nullptr;
  void* operands[kWarp];
};

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;
  std::unique_ptr<Guarded> shared;
  int thread_count = 0, current = 0;
  unsigned block = 0, grid = 0;
};

thread_local Machine machine;
thread_local unsigned order_seed = 0;

std::map<const void*, int64_t> launches;  // of each kernel, since the last report

Thread& thread() { return *machine.threads[machine.current]; }

std::string thread_name(int thread) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(machine.block);
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("CUDA emulator: " + what);
}

void enter() {
  Machine& m = machine;
  try {
    (*m.body)();
    const Thread& t = thread();
    if (!t.uncommitted.empty() || !t.groups.empty())
      fail(thread_name(m.current) + " ended with asynchronous copies that it never waited for");
  } catch (...) {
    m.error = std::current_exception();
  }
  thread().state = State::done;
  thread().fiber.leave();
}

void wait(State state) {
  Thread& t = thread();
  t.state = state;
  t.fiber.wait();
}

void prepare(int index) {
  Machine& m = machine;
  if (static_cast<int>(m.threads.size()) <= index) m.threads.push_back(std::make_unique<Thread>());
  Thread& t = *m.threads[index];
  t.uncommitted.clear();
  t.groups.clear();
  t.state = State::ready;
  t.fiber.prepare(&enter);
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
  for (int t = 0; t < m.thread_count; ++t) {
    if (m.threads[t]->state == State::at_warp)
      fail(thread_name(t) + " waits for its warp at " + m.warps[t / kWarp].name +
           ", which other lanes do not reach");
    if (m.threads[t]->state == State::done)
      fail(thread_name(t) + " ended while others wait at a barrier of the block");
  }
  for (int t = 0; t < m.thread_count; ++t) m.threads[t]->state = State::ready;
}

void run_block(const std::vector<int>& order) {
  Machine& m = machine;
  for (int i = 0; i < m.thread_count; ++i) prepare(i);
  m.warps.assign((m.thread_count + kWarp - 1) / kWarp, Warp{});
  m.shared->fill_with_nan();
  for (int done = 0; done < m.thread_count;) {
    bool progress = false;
    for (const int t : order) {
      if (m.threads[t]->state != State::ready) continue;
      m.current = t;
      m.threads[t]->fiber.resume();
      if (m.error) std::rethrow_exception(std::exchange(m.error, nullptr));
      progress = true;
      done += m.threads[t]->state == State::done;
    }
    if (!progress) release_block();
  }
}

}  // namespace

Index thread_index() { return {static_cast<unsigned>(machine.current)}; }
Index block_index() { return {machine.block}; }
Index block_dimension() { return {static_cast<unsigned>(machine.thread_count)}; }
Index grid_dimension() { return {machine.grid}; }
unsigned char* shared_memory() { return machine.shared->data(); }
void set_order(unsigned seed) { order_seed = seed; }

void run(const void* kernel, int64_t blocks, int threads, int shared_bytes,
         const std::function<void()>& body) {
  constexpr int64_t kMostBlocks = 64;  // few, so that kernels walk more tiles than there are blocks
  if (threads < 1 || threads > 1024) fail(std::to_string(threads) + " threads in a block");
  if (shared_bytes > 227 * 1024) fail(std::to_string(shared_bytes) + " bytes of shared memory");
  Machine& m = machine;
  m.body = &body;
  m.thread_count = threads;
  m.grid = static_cast<unsigned>(std::min(blocks, kMostBlocks));
  m.shared = std::make_unique<Guarded>(shared_bytes);
  ++launches[kernel];
  const std::vector<int> order = thread_order(threads);
  for (m.block = 0; m.block < m.grid; ++m.block) run_block(order);
  m.shared->check("shared memory");
}

std::string take_launches() {
  std::string report;
  for (const auto& [kernel, count] : std::exchange(launches, {})) {
    Dl_info library{};
    dladdr(kernel, &library);
    const auto offset = static_cast<const char*>(kernel) - static_cast<char*>(library.dli_fbase);
    report += std::to_string(offset) + " " + std::to_string(count) + "\n";
  }
  return report;
}

void synchronize_block() { wait(State::at_block); }

void collective(const char* name, void* operands, void (*together)(void* const* operands)) {
  Machine& m = machine;
  Warp& warp = m.warps[m.current / kWarp];
  if (m.thread_count % kWarp != 0) fail("a block whose threads are no whole number of warps");
  if (warp.arrived > 0 && std::strcmp(warp.name, name) != 0)
    fail(thread_name(m.current) + " is at " + name + ", another lane of its warp at " + warp.name);
  warp.name = name;
  warp.operands[m.current % kWarp] = operands;
  if (++warp.arrived < kWarp) return wait(State::at_warp);
  warp.arrived = 0;
  together(warp.operands);
  const int first = m.current / kWarp * kWarp;
  for (int t = first; t < first + kWarp; ++t) m.threads[t]->state = State::ready;
}

void check_access(const char* name, const void* address, int bytes, int alignment, bool shared) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at % alignment != 0)
    fail(thread_name(machine.current) + ": " + name + " at an address that is no multiple of " +
         std::to_string(alignment));
  const auto begin = reinterpret_cast<uintptr_t>(machine.shared->data());
  if (shared && (at < begin || at + bytes > begin + machine.shared->size()))
    fail(thread_name(machine.current) + ": " + name + " outside shared memory");
}

void copy_later(void* shared, const void* global, int bytes) {
  const Copy copy{shared, global, bytes};
  // A GPU may copy at any time in between: the two extremes are what is tried.
  if (order_seed % 2 == 1) copy.happen();
  thread().uncommitted.push_back(copy);
}

void commit_copies() { thread().groups.push_back(std::exchange(thread().uncommitted, {})); }

void wait_for_copies(int groups_left) {
  std::deque<std::vector<Copy>>& groups = thread().groups;
  for (; static_cast<int>(groups.size()) > groups_left; groups.pop_front()) {
    if (order_seed % 2 == 1) continue;
    for (const Copy& copy : groups.front()) copy.happen();
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
