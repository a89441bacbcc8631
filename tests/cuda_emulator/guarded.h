// Buffers whose neighbourhood is watched. Without a sanitizer an access outside is seen by what it
// leaves behind: a read gives NaN, a write is found by check(). AddressSanitizer sees it at once.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"

namespace emulator {

class Guarded {
 public:
  // `bytes` bytes of NaN in every type, `past` bytes past a multiple of 256.
  explicit Guarded(int64_t bytes, int64_t past = 0);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  unsigned char* data() const { return begin; }
  int64_t size() const { return bytes; }
  void fill_with_nan();

  // Throws std::runtime_error, naming the buffer, where something was written outside.
  void check(const std::string& name) const;

 private:
  int64_t bytes, room_bytes;
  unsigned char* room;
  unsigned char* begin;
};

// Moves the operands of a call into guarded copies for as long as it runs.
class GuardedCall {
 public:
  explicit GuardedCall(int item_bytes) : item(item_bytes) {}

  // `tensor` then points to a copy; a tensor without data stays so.
  void input(const char* name, convlm::ConstTensor& tensor, int64_t d0, int64_t d1 = 1,
             int64_t d2 = 1);
  // `data` then points to as many elements that nothing wrote yet; null stays so.
  void output(const char* name, void*& data, int64_t elements);

  // `data` then points to a copy of as many elements, and all between them; what becomes of them
  // is an output.
  void updated(const char* name, void*& data, int64_t span);

  // Hands the outputs over. Throws std::runtime_error where an element of one was never written,
  // an input was changed, or anything outside a buffer was.
  void finish();

 private:
  struct Operand {
    std::string name;
    std::unique_ptr<Guarded> copy;
    const void* input;  // one of these two is null
    void* output;
    bool written;  // an output that something must write everywhere
  };
  int64_t item;
  std::vector<Operand> operands;
};

}  // namespace emulator
