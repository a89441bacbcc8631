#include "guarded.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "sanitizer.h"

namespace emulator {
namespace {

constexpr int64_t kZone = 4096;  // on each side
constexpr int64_t kAlignment = 256;
constexpr unsigned char kNaN = 0xff;

// A NaN in 16 and 32 bits, a signalling one in 64, and none that arithmetic gives.
constexpr uint16_t kUnwritten = 0xfff5;

bool is_unwritten(const unsigned char* element, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += sizeof kUnwritten)
    if (std::memcmp(element + i, &kUnwritten, sizeof kUnwritten) != 0) return false;
  return true;
}

}  // namespace

Guarded::Guarded(int64_t bytes_, int64_t past)
    : bytes(bytes_), room_bytes(2 * kZone + kAlignment + bytes_) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, room_bytes) != 0) throw std::bad_alloc();
  room = static_cast<unsigned char*>(memory);
  begin = room + kZone + past % kAlignment;
  std::memset(room, kNaN, room_bytes);
  poison(room, begin - room);
  poison(begin + bytes, room + room_bytes - (begin + bytes));
}

Guarded::~Guarded() {
  unpoison(room, room_bytes);
  std::free(room);
}

void Guarded::fill_with_nan() { std::memset(begin, kNaN, bytes); }

void Guarded::check(const std::string& name) const {
  if (kSanitized) return;  // it would have ended the process, and forbids this look
  const auto is_whole = [](const unsigned char* first, const unsigned char* last) {
    return std::all_of(first, last, [](unsigned char byte) { return byte == kNaN; });
  };
  if (!is_whole(room, begin))
    throw std::runtime_error("CUDA emulator: something was written before " + name);
  if (!is_whole(begin + bytes, room + room_bytes))
    throw std::runtime_error("CUDA emulator: something was written after " + name);
}

void GuardedCall::input(const char* name, convlm::ConstTensor& tensor, int64_t d0, int64_t d1,
                        int64_t d2) {
  if (tensor.data == nullptr) return;
  const int64_t* stride = tensor.stride;
  const bool empty = d0 == 0 || d1 == 0 || d2 == 0;
  const int64_t last = (d0 - 1) * stride[0] + (d1 - 1) * stride[1] + (d2 - 1) * stride[2];
  const int64_t bytes = empty ? 0 : (last + 1) * item;
  const auto address = reinterpret_cast<uintptr_t>(tensor.data);
  auto copy = std::make_unique<Guarded>(bytes, address % kAlignment);  // as aligned as it was
  std::memcpy(copy->data(), tensor.data, bytes);
  operands.push_back({name, std::move(copy), tensor.data, nullptr, false});
  tensor.data = operands.back().copy->data();
}

void GuardedCall::output(const char* name, void*& data, int64_t elements) {
  if (data == nullptr) return;
  auto copy = std::make_unique<Guarded>(elements * item);
  auto* words = reinterpret_cast<uint16_t*>(copy->data());
  std::fill_n(words, elements * item / sizeof kUnwritten, kUnwritten);
  operands.push_back({name, std::move(copy), nullptr, data, true});
  data = operands.back().copy->data();
}

void GuardedCall::updated(const char* name, void*& data, int64_t span) {
  if (data == nullptr) return;
  auto copy = std::make_unique<Guarded>(span * item);
  std::memcpy(copy->data(), data, copy->size());
  operands.push_back({name, std::move(copy), nullptr, data, false});
  data = operands.back().copy->data();
}

void GuardedCall::finish() {
  for (const Operand& o : operands) {
    o.copy->check(o.name);
    if (o.input && std::memcmp(o.input, o.copy->data(), o.copy->size()) != 0)
      throw std::runtime_error("CUDA emulator: the input " + o.name + " was written to");
    for (int64_t at = 0; o.written && at < o.copy->size(); at += item)
      if (is_unwritten(o.copy->data() + at, item))
        throw std::runtime_error("CUDA emulator: element " + std::to_string(at / item) + " of " +
                                 o.name + " was never written");
  }
  for (const Operand& o : operands)  // last: what is updated may be an input too
    if (o.output) std::memcpy(o.output, o.copy->data(), o.copy->size());
}

}  // namespace emulator
