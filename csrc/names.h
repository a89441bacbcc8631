// The words that operators and introspection take, and what they mean.
#pragma once
#include <optional>
#include <stdexcept>
#include <string>

#include "arguments.h"

namespace convlm {

inline std::optional<ScalarType> dtype_named(const std::string& name) {
  if (name == "float32") return ScalarType::float32;
  if (name == "float64") return ScalarType::float64;
  if (name == "bfloat16") return ScalarType::bfloat16;
  if (name == "float16") return ScalarType::float16;
  return std::nullopt;
}

inline std::optional<Precision> precision_named(const std::string& name) {
  if (name == "ieee") return Precision::ieee;
  if (name == "tf32") return Precision::tf32;
  return std::nullopt;
}

inline std::optional<Activation> activation_named(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "tanh") return Activation::tanh;
  if (name == "relu") return Activation::relu;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "sigmoid") return Activation::sigmoid;
  return std::nullopt;
}

// For introspection: std::invalid_argument instead of nothing.
inline ScalarType asked_dtype(const std::string& name) {
  if (const std::optional<ScalarType> dtype = dtype_named(name)) return *dtype;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16, got '" + name +
                              "'");
}
inline Precision asked_precision(const std::string& name) {
  if (const std::optional<Precision> precision = precision_named(name)) return *precision;
  throw std::invalid_argument("fp32_precision must be ieee or tf32, got '" + name + "'");
}

}  // namespace convlm
