#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace convlm::cpu {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool (*supported)();
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const Candidate candidates[] = {
#if defined(__x86_64__)
    {&avx512_bf16_kernels, [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }},
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

}  // namespace

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
