// Kernels with one fault each, and their sound sisters: what the emulator must tell apart.
#include <cstring>
#include <stdexcept>
#include <string>

#include "emulator.h"
#include "guarded.h"

namespace {

constexpr int kThreads = 64;

// out[i] = in[63 - i], through shared memory.
void reverse(const float* in, float* out, bool with_barrier) {
  float* values = reinterpret_cast<float*>(emulator::shared_memory());
  const int i = static_cast<int>(threadIdx.x);
  values[i] = in[i];
  if (with_barrier) __syncthreads();
  out[i] = values[kThreads - 1 - i];
}

// The sum over a warp, by lanes that exchange with the lane `mask` away.
void exchange(float* value, int mask) {
  struct Operands {
    float value;
    int mask;
    float result;
  } mine{*value, mask, 0.0f};
  emulator::collective("exchange", &mine, [](void* const* lanes) {
    for (int i = 0; i < 32; ++i) {
      Operands& to = *static_cast<Operands*>(lanes[i]);
      to.result = static_cast<Operands*>(lanes[i ^ to.mask])->value;
    }
  });
  *value = mine.result;
}

void sum(const float* in, float* out, bool right_lanes) {
  float total = in[threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) {
    float other = total;
    exchange(&other, right_lanes || mask < 16 ? mask : 8);
    total += other;
  }
  out[threadIdx.x] = total;
}

// out[i] = in[63 - i], where the copies that come next land in what is still being read.
void copy_over_what_others_read(const float* in, float* out) {
  float* shared = reinterpret_cast<float*>(emulator::shared_memory());
  const int i = static_cast<int>(threadIdx.x);
  shared[i] = in[i];
  __syncthreads();
  emulator::copy_later(shared + i, in, sizeof(float));
  emulator::commit_copies();
  out[i] = shared[kThreads - 1 - i];
  __syncthreads();
  emulator::wait_for_copies(0);
}

void body(const std::string& what, const float* in, float* out) {
  const int i = static_cast<int>(threadIdx.x);
  float* shared = reinterpret_cast<float*>(emulator::shared_memory());
  if (what == "reverse") return reverse(in, out, true);
  if (what == "missing barrier") return reverse(in, out, false);
  if (what == "sum") return sum(in, out, true);
  if (what == "wrong lanes") return sum(in, out, false);
  if (what == "read outside a buffer") {
    out[i] = in[i + 1];
  } else if (what == "write outside a buffer") {
    out[i + 1] = in[i];
    out[0] = in[0];
  } else if (what == "output left out") {
    if (i != 5) out[i] = in[i];
  } else if (what == "input written to") {
    const_cast<float*>(in)[i] = out[i] = 0.0f;
  } else if (what == "write outside shared memory") {
    shared[i + 1] = out[i] = in[i];
  } else if (what == "barrier for some") {
    if (i < 32) __syncthreads();
  } else if (what == "instruction of a warp for some") {
    if (i % 2 == 0) exchange(out + i, 1);
  } else if (what == "copy not waited for") {
    emulator::copy_later(shared + i, in + i, sizeof(float));
    emulator::commit_copies();
    out[i] = shared[i];
  } else if (what == "copy over what others read") {
    copy_over_what_others_read(in, out);
  } else if (what == "misaligned") {
    emulator::check_access("copy", in + i, 16, 16, false);
  } else {
    throw std::invalid_argument("no kernel is called " + what);
  }
}

}  // namespace

// `in` and `out` hold 64 numbers. The answer is what the emulator complained of, or empty; it stays
// valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* run_faulty(const char* what,
                                                                         const float* in,
                                                                         float* out,
                                                                         unsigned order) {
  static std::string complaint;
  complaint.clear();
  emulator::set_order(order);
  try {
    emulator::GuardedCall call(sizeof(float));
    convlm::ConstTensor guarded_in{in, {0, 0, 1}};
    void* guarded_out = out;
    call.input("in", guarded_in, 1, 1, kThreads);
    call.output("out", guarded_out, kThreads);
    emulator::run(nullptr, 1, kThreads, kThreads * sizeof(float), [&] {
      body(what, static_cast<const float*>(guarded_in.data), static_cast<float*>(guarded_out));
    });
    call.finish();
  } catch (const std::exception& error) {
    complaint = error.what();
  }
  emulator::set_order(0);
  return complaint.c_str();
}

extern "C" __attribute__((visibility("default"))) void set_order(unsigned seed) {
  emulator::set_order(seed);
}

// The answer stays valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* take_launches() {
  static std::string report;
  report = emulator::take_launches();
  return report.c_str();
}
