// Stacks that take turns on one thread: the threads of an emulated block.
#pragma once
#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  Fiber();

  // The next resume() starts `body`, which must not return: it ends with leave().
  void prepare(void (*body)());

  // From outside: runs the fiber until it waits or leaves.
  void resume();

  // From inside: goes back to resume(), for now or for good.
  void wait();
  [[noreturn]] void leave();

 private:
#if defined(__x86_64__)
  using Context = void*;  // a stack pointer; the registers lie on the stack
#else
  using Context = ucontext_t;
#endif
  void start();
  static void enter();
  void go(Context& from, Context& to);

  std::unique_ptr<unsigned char[]> stack;
  void (*body)() = nullptr;
  Context inside, outside;
  bool started = false;
  // What AddressSanitizer must be told of at each change of stacks.
  void* sanitizer_inside = nullptr;
  void* sanitizer_outside = nullptr;
  const void* outside_stack = nullptr;
  size_t outside_bytes = 0;
};

}  // namespace emulator
