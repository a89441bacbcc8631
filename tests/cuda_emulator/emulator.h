// CUDA on the CPU, for tests: the blocks of a launch run one after the other, the threads of a
// block as fibers that take turns at barriers and at the instructions of a warp.
//
// What it catches that a GPU may let pass: a barrier or an instruction of a warp that not all
// threads reach, reads of shared memory that nothing wrote (it starts as NaN) or that another
// thread has yet to write (the order of threads can be turned round), asynchronous copies that
// nobody waited for or that come too early for whoever still reads, misaligned accesses of 16
// bytes; outputs that are not written, inputs that are, and accesses outside a buffer, shared
// memory included, as guarded.h says.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;

namespace emulator {

struct Index {
  unsigned x;
};

// The coordinates of the running thread.
Index thread_index();
Index block_index();
Index block_dimension();
Index grid_dimension();

unsigned char* shared_memory();

// Runs `body`, a call of `kernel`, once for each thread. Throws std::runtime_error with what the
// kernel did wrong.
void run(const void* kernel, int64_t blocks, int threads, int shared_bytes,
         const std::function<void()>& body);

// A line "<offset in its library> <launches>" for each kernel that ran since the last call.
std::string take_launches();

// 0: threads run in ascending order; 1: in descending order; else: shuffled by this seed.
// Asynchronous copies happen as late as they may, with an odd seed as early as they may.
void set_order(unsigned seed);

void synchronize_block();

// Every lane of a warp arrives with a pointer to its own operands; the last one to arrive calls
// `together` with all 32. `name` is the instruction: lanes must not meet at different ones.
void collective(const char* name, void* operands, void (*together)(void* const* operands));

// Throws unless `bytes` at `address` are aligned to `alignment` and, where asked, in shared memory.
void check_access(const char* name, const void* address, int bytes, int alignment, bool shared);

// Of the running thread: copies that happen between this and the wait for them.
void copy_later(void* shared, const void* global, int bytes);
void commit_copies();
void wait_for_copies(int groups_left);

float from_float16(uint16_t bits);
uint16_t to_float16(float value);
uint16_t to_bfloat16(float value);

}  // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_dimension())
#define gridDim (emulator::grid_dimension())
inline void __syncthreads() { emulator::synchronize_block(); }

// Threads change places at barriers only, so each of these is one step.
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}
inline int atomicMin(int* address, int value) {
  const int before = *address;
  if (value < before) *address = value;
  return before;
}
inline int atomicCAS(int* address, int expected, int value) {
  const int before = *address;
  if (before == expected) *address = value;
  return before;
}
