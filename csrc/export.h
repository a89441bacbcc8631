#pragma once
// What the pybind11 module calls must stay visible in a library built with hidden visibility.
#define CONVLM_API __attribute__((visibility("default")))
