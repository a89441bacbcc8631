// Which instruction set the CPU kernels use: chosen once, at the first call.
#pragma once
#include <string>
#include <vector>

#include "export.h"

namespace convlm::cpu {

struct Kernels;

// The best supported instruction set, or the one that CONVLM_CPU_ISA names.
// Throws std::runtime_error where that variable names one that is unknown or not supported here.
const Kernels& kernels();
CONVLM_API const char* isa_name();
CONVLM_API std::vector<std::string> supported_isas();  // best first

}  // namespace convlm::cpu
