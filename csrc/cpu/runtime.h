// What the kernels need from the process: threads and scratch memory. No torch header here, because
// kernels.inl is compiled once per instruction set and must not instantiate foreign inline code.
#pragma once
#include <cstddef>
#include <cstdint>

namespace convlm::cpu {

// Calls body(context, begin, end) over disjoint pieces of [0, jobs) on torch's threads, or at once
// where multiply_adds_per_job says that the work would not pay for waking a thread.
void parallel(int64_t jobs, int64_t multiply_adds_per_job,
              void (*body)(const void* context, int64_t begin, int64_t end), const void* context);

// How many threads parallel() may use. Work may be cut by it only where the cut does not show in
// the bits.
int64_t threads();
// How many of them so much work is worth.
int64_t threads_for(int64_t multiply_adds);

// While one lives, its thread works alone, where that is wanted: parallel() wakes no other.
class [[nodiscard]] Alone {
 public:
  explicit Alone(bool wanted);
  ~Alone();
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;

 private:
  bool before_;
};

// A buffer of this thread, aligned to a cache line, valid until the same slot is asked for again.
// Its contents are zeros or left from earlier calls. Kept between calls: fresh pages cost more than
// the work. No slot is for integers or pointers at one time and for what is multiplied at another:
// read as floats they are denormal numbers, which take a hundred times as long.
enum class Slot {
  taps,
  parts,
  plan,
  starts,
  weight,
  staged,
  panel,
  tile,
  partial,
  finite,
  inside,
  lanes,
  last,
  rows,
  tokens,
  target,
  losses,
  table,
  stack,
  stack_layers,
  stack_pieces,
  stack_readers,
  stack_group,
  stack_sums,
  stack_saved,
  links,
  numbers,
  pairs,
  order,
  count
};
void* scratch(Slot slot, size_t bytes);

// Whether a vector that is read anew for each product costs next to nothing: so where 512 bits are
// multiplied in two halves, while two loads are done.
bool loads_outpace_products();

// The numbers 0 .. count in descending order of `values`, equals in ascending order; in scratch
// memory.
const int64_t* descending_order(const float* values, int64_t count);
const int64_t* descending_order(const double* values, int64_t count);

}  // namespace convlm::cpu
