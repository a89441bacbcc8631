// Which instruction set the CPU kernels use: chosen once, at the first call.
#pragma once
#include <string>
#include <vector>

#include "export.h"
#include "geometry.h"

namespace convlm::cpu {

struct Kernels;

// The best supported instruction set, or the one that CONVLM_CPU_ISA names.
// Throws std::runtime_error where that variable names one that is unknown or not supported here.
const Kernels& kernels();
CONVLM_API const char* isa_name();
// The name of the kernel that contiguous tensors of this geometry get. `function` is forward,
// grad_input or grad_weight, `dtype` float32, float64, bfloat16 or float16, `fp32_precision` ieee
// or tf32; else std::invalid_argument.
CONVLM_API std::string kernel_name(const std::string& function, const std::string& dtype,
                                   const std::string& fp32_precision,
                                   const Conv1dGeometry& geometry);
CONVLM_API std::vector<std::string> supported_isas();  // best first

}  // namespace convlm::cpu
