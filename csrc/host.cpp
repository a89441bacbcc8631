// The pybind11 module convlm_kernels._host: everything of the library that takes no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cuda/select.h"
#include "cuda/shared_fits.h"
#include "geometry.h"
#include "names.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

#if defined(__clang__)
constexpr const char* compiler = "clang " __clang_version__;
#else
constexpr const char* compiler = "gcc " __VERSION__;
#endif

py::dict build_info() {
  const std::string cuda_archs = CONVLM_CUDA_ARCHS;
  return py::dict("torch"_a = CONVLM_TORCH_VERSION, "cuda"_a = !cuda_archs.empty(),
                  "cuda_archs"_a = cuda_archs, "compiler"_a = compiler);
}

int64_t output_length(int64_t length, int64_t kernel_size, int64_t stride, int64_t dilation,
                      int64_t pad_left, int64_t pad_right) {
  // Divided by below, and a division by zero would end the process.
  if (stride < 1)
    throw py::value_error("stride must be at least 1, but it is " + std::to_string(stride));
  return convlm::output_length(length, kernel_size, stride, dilation, pad_left, pad_right);
}

// The choice of a kernel divides by what a geometry must not have as zero.
convlm::Conv1dGeometry checked_geometry(int64_t batch, int64_t in_channels, int64_t out_channels,
                                        int64_t length, int64_t kernel_size, int64_t stride,
                                        int64_t pad_left, int64_t pad_right, int64_t dilation,
                                        int64_t groups) {
  for (const int64_t size :
       {batch, in_channels, out_channels, length, kernel_size, stride, dilation, groups})
    if (size < 1) throw py::value_error("all sizes must be at least 1");
  if (in_channels % groups != 0 || out_channels % groups != 0)
    throw py::value_error("groups must divide in_channels and out_channels");
  const int64_t out_length =
      convlm::output_length(length, kernel_size, stride, dilation, pad_left, pad_right);
  if (out_length < 1) throw py::value_error("the dilated kernel is longer than the padded input");
  return {batch,       in_channels, out_channels, groups,   length,   out_length,
          kernel_size, stride,      dilation,     pad_left, pad_right};
}

std::string cpu_kernel(const std::string& function, const std::string& dtype, int64_t batch,
                       int64_t in_channels, int64_t out_channels, int64_t length,
                       int64_t kernel_size, int64_t stride, int64_t pad_left, int64_t pad_right,
                       int64_t dilation, int64_t groups, const std::string& fp32_precision) {
  const convlm::Conv1dGeometry geometry =
      checked_geometry(batch, in_channels, out_channels, length, kernel_size, stride, pad_left,
                       pad_right, dilation, groups);
  return convlm::cpu::kernel_name(function, dtype, fp32_precision, geometry);
}

std::string cuda_kernel(const std::string& dtype, int64_t batch, int64_t in_channels,
                        int64_t out_channels, int64_t length, int64_t kernel_size, int64_t stride,
                        int64_t pad_left, int64_t pad_right, int64_t dilation, int64_t groups,
                        const std::string& fp32_precision) {
  const convlm::Conv1dGeometry geometry =
      checked_geometry(batch, in_channels, out_channels, length, kernel_size, stride, pad_left,
                       pad_right, dilation, groups);
  return convlm::cuda::name_of(convlm::cuda::kernel_for(geometry, convlm::asked_dtype(dtype),
                                                        convlm::asked_precision(fp32_precision)));
}

// A chain of layers, each (columns, kernel_size); the columns of a gated one are twice its
// channels.
struct Chain {
  std::vector<convlm::StackLayer> layers;
  std::vector<convlm::LayerTaps> taps;
  std::string reason;  // why there is no such chain, or nothing
};

Chain chain_of(int64_t channels, int64_t length,
               const std::vector<std::pair<int64_t, int64_t>>& weights,
               const std::vector<int64_t>& dilations, const std::vector<int64_t>& pads,
               const std::vector<bool>& gated) {
  Chain chain;
  for (size_t i = 0; i < weights.size(); ++i) {
    convlm::StackLayer layer{};
    layer.in_channels = channels;
    layer.columns = weights[i].first;
    layer.kernel_size = weights[i].second;
    layer.gated = gated.at(i);
    const int64_t pad = pads.at(i), dilation = dilations.at(i);
    const int64_t out = convlm::output_length(length, layer.kernel_size, 1, dilation, pad, 0);
    if (layer.in_channels < 1 || layer.out_channels() < 1 || layer.kernel_size < 1)
      throw py::value_error("all sizes must be at least 1");
    if (out < 1) {
      chain.reason = "layer " + std::to_string(i) + " has no outputs";
      return chain;
    }
    chain.layers.push_back(layer);
    chain.taps.push_back({layer.kernel_size, dilation, pad, length, out});
    channels = layer.out_channels();
    length = out;
  }
  return chain;
}

std::optional<std::string> reason_or_none(const std::string& reason) {
  if (reason.empty()) return std::nullopt;
  return reason;
}

// Why a chain does not fit a GPU of that capability. `vocab` is 0 without tokens.
std::optional<std::string> cuda_reason_stack_not_fused(
    const std::string& dtype, int64_t channels, int64_t length, int64_t vocab,
    const std::vector<std::pair<int64_t, int64_t>>& weights, const std::vector<int64_t>& dilations,
    const std::vector<int64_t>& pads, const std::vector<bool>& gated, int capability) {
  const Chain chain = chain_of(channels, length, weights, dilations, pads, gated);
  if (!chain.reason.empty()) return chain.reason;
  return reason_or_none(convlm::cuda::reason_stack_does_not_fit(
      chain.layers, chain.taps, vocab, convlm::asked_dtype(dtype), capability));
}

// Why one that fits computes each position for itself, and not each distinct context once.
std::optional<std::string> cuda_reason_contexts_not_shared(
    const std::string& dtype, int64_t channels, int64_t length, int64_t vocab,
    const std::vector<std::pair<int64_t, int64_t>>& weights, const std::vector<int64_t>& dilations,
    const std::vector<int64_t>& pads, const std::vector<bool>& gated, int capability,
    int64_t batch) {
  const Chain chain = chain_of(channels, length, weights, dilations, pads, gated);
  if (!chain.reason.empty()) return chain.reason;
  return reason_or_none(convlm::cuda::reason_contexts_not_shared(
      chain.layers, chain.taps, vocab, batch, convlm::asked_dtype(dtype), capability,
      convlm::cuda::kLeastProductsToShare));
}

}  // namespace

// No function here touches what another could change, so free-threaded Python may keep its GIL off.
PYBIND11_MODULE(_host, m, py::mod_gil_not_used()) {
  m.def("build_info", &build_info);
  m.def("cpu_isa", &convlm::cpu::isa_name);
  m.def("cpu_isas", &convlm::cpu::supported_isas);
  m.def("cpu_kernel", &cpu_kernel, "function"_a, "dtype"_a, "batch"_a, "in_channels"_a,
        "out_channels"_a, "length"_a, "kernel_size"_a, "stride"_a = 1, "pad_left"_a = 0,
        "pad_right"_a = 0, "dilation"_a = 1, "groups"_a = 1, "fp32_precision"_a = "ieee");
  m.def("cuda_kernel", &cuda_kernel, "dtype"_a, "batch"_a, "in_channels"_a, "out_channels"_a,
        "length"_a, "kernel_size"_a, "stride"_a = 1, "pad_left"_a = 0, "pad_right"_a = 0,
        "dilation"_a = 1, "groups"_a = 1, "fp32_precision"_a = "ieee");
  m.def("cuda_reason_stack_not_fused", &cuda_reason_stack_not_fused, "dtype"_a, "channels"_a,
        "length"_a, "vocab"_a, "weights"_a, "dilations"_a, "pads"_a, "gated"_a, "capability"_a);
  m.def("cuda_reason_contexts_not_shared", &cuda_reason_contexts_not_shared, "dtype"_a,
        "channels"_a, "length"_a, "vocab"_a, "weights"_a, "dilations"_a, "pads"_a, "gated"_a,
        "capability"_a, "batch"_a);
  m.def("output_length", &output_length, "length"_a, "kernel_size"_a, "stride"_a, "dilation"_a,
        "pad_left"_a, "pad_right"_a);
  m.def("input_position", &convlm::input_position, "out"_a, "tap"_a, "stride"_a, "dilation"_a,
        "pad_left"_a);
}
