#include "fiber.h"

#include <cstdint>
#include <cstdlib>

#include "sanitizer.h"

#if defined(__x86_64__)
// Saves what a function must preserve on the stack that it leaves, and loads it from the one that
// it goes to. swapcontext does the same with a system call for the signal mask, ten times slower.
asm(R"(
  .text
  .type convlm_switch_stack, @function
convlm_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size convlm_switch_stack, . - convlm_switch_stack
)");
extern "C" __attribute__((visibility("hidden"))) void convlm_switch_stack(void** from, void* to);
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
thread_local Fiber* running = nullptr;

}  // namespace

Fiber::Fiber() : stack(new unsigned char[kStackBytes]) {}

void Fiber::prepare(void (*body_)()) {
  // One that was given up in the middle has left its frames' red zones behind.
  if (started) unpoison(stack.get(), kStackBytes);
  body = body_;
  started = false;
}

#if defined(__x86_64__)

// The new stack as convlm_switch_stack would have left it just before enter() began.
void Fiber::start() {
  constexpr int kSavedRegisters = 6;
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack.get() + kStackBytes) / 16 * 16;
  void** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // where enter() would return to
  *--sp = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 0; i < kSavedRegisters; ++i) *--sp = nullptr;
  inside = sp;
}

void Fiber::go(Context& from, Context& to) { convlm_switch_stack(&from, to); }

#else

void Fiber::start() {
  getcontext(&inside);
  inside.uc_stack.ss_sp = stack.get();
  inside.uc_stack.ss_size = kStackBytes;
  inside.uc_link = nullptr;
  makecontext(&inside, &Fiber::enter, 0);
}

void Fiber::go(Context& from, Context& to) { swapcontext(&from, &to); }

#endif

void Fiber::enter() {
  arrive_on_stack(nullptr, &running->outside_stack, &running->outside_bytes);
  running->body();
}

void Fiber::resume() {
  if (!started) start();
  started = true;
  running = this;
  leave_stack(&sanitizer_outside, stack.get(), kStackBytes);
  go(outside, inside);
  arrive_on_stack(sanitizer_outside, nullptr, nullptr);
}

void Fiber::wait() {
  leave_stack(&sanitizer_inside, outside_stack, outside_bytes);
  go(inside, outside);
  arrive_on_stack(sanitizer_inside, &outside_stack, &outside_bytes);
}

void Fiber::leave() {
  started = false;
  leave_stack(nullptr, outside_stack, outside_bytes);
  go(inside, outside);
  std::abort();  // nobody resumes it
}

}  // namespace emulator
