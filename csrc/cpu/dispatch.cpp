#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"
#include "names.h"

#if defined(CONVLM_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace convlm::cpu {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool (*supported)();
};

#if defined(__x86_64__) && !defined(CONVLM_PORTABLE)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

#if defined(CONVLM_AMX)
// The kernel keeps room for the registers of a process that has asked for them.
bool has_amx() {
  constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;
  constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512_bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (edx & kTiles) != 0 && (edx & kBfloat16) != 0 &&
         syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
}
#endif

const Candidate candidates[] = {
#if defined(__x86_64__) && !defined(CONVLM_PORTABLE)
#if defined(CONVLM_AMX)
    {&amx_kernels, &has_amx},
#endif
    {&avx512_bf16_kernels, &has_avx512_bf16},
    {&avx512_kernels, &has_avx512},
    {&avx2_kernels,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {&generic_kernels, [] { return true; }},
};

const Kernels& choose() {
  const char* wanted = std::getenv("CONVLM_CPU_ISA");
  std::string supported;
  for (const std::string& name : supported_isas())
    supported += (supported.empty() ? "" : ", ") + name;
  for (const Candidate& candidate : candidates) {
    if (!candidate.supported()) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == candidate.kernels->isa)
      return *candidate.kernels;
  }
  throw std::runtime_error("CONVLM_CPU_ISA is '" + std::string(wanted) +
                           "', but this processor supports: " + supported);
}

Kernel kernel_of(const std::string& function, const std::string& dtype_name,
                 const std::string& fp32_precision, const Conv1dGeometry& g) {
  const ScalarType dtype = asked_dtype(dtype_name);
  const Precision precision = asked_precision(fp32_precision);
  const ConstTensor x{nullptr, {g.in_channels * g.length, g.length, 1}};
  const ConstTensor y{nullptr, {g.out_channels * g.out_length, g.out_length, 1}};
  const ConstTensor weight{nullptr, {g.in_channels_per_group() * g.kernel_size, g.kernel_size, 1}};
  if (function == "forward")
    return kernels().forward_kernel(
        {g, dtype, precision, x, weight, {}, Activation::none, nullptr});
  if (function == "grad_input")
    return kernels().grad_input_kernel({g, dtype, precision, y, weight, {}, nullptr});
  if (function == "grad_weight")
    return kernels().grad_weight_kernel({g, dtype, precision, y, x, {}, nullptr, nullptr});
  throw std::invalid_argument("function must be forward, grad_input or grad_weight, got '" +
                              function + "'");
}

}  // namespace

std::string kernel_name(const std::string& function, const std::string& dtype,
                        const std::string& fp32_precision, const Conv1dGeometry& geometry) {
  switch (kernel_of(function, dtype, fp32_precision, geometry)) {
    case Kernel::depthwise:
      return "depthwise";
    case Kernel::positions:
      return "positions";
    case Kernel::rows:
      return "rows";
    case Kernel::taps:
      return "taps";
    case Kernel::windows:
      return "windows";
    case Kernel::joined:
      return "joined";
    case Kernel::fast_filter_2:
      return "fast_filter_2";
    case Kernel::fast_filter_4:
      return "fast_filter_4";
    case Kernel::tiles:
      return "tiles";
  }
  return "";
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* isa_name() { return kernels().isa; }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates)
    if (candidate.supported()) names.emplace_back(candidate.kernels->isa);
  return names;
}

}  // namespace convlm::cpu
