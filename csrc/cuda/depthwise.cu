// Correlations whose groups have one input channel (or, for grad_input, one row): a product needs
// an element of its own, so memory decides. A block stages a window of a few channels once, sixteen
// bytes at a time and with the halo that the taps reach; each output is then a sum over shared
// memory, and neighbouring lanes make neighbouring outputs, so that neither the dilation nor where
// rows start costs anything.
#include "cuda/kernels.h"
#include "cuda/staging.h"
#include "cuda/taps.h"

namespace convlm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLog2Sums = 2;
constexpr int kSums = 1 << kLog2Sums;  // outputs of a thread, which share each weight it reads
constexpr int kSpread = 32;            // and lie this far apart: a warp reads and writes neighbours
constexpr int64_t kSharedBytes = 48 * 1024;  // so that several blocks share a multiprocessor
constexpr int kElements = 4096;  // of a tile: some 64 bytes of loads in flight for each thread

template <class S>
struct Depthwise {
  Correlation<S> p;
  Taps taps;
  int groups, log2_outputs;  // of a tile, outputs of one class
  int spread, width, pitch;
  int64_t group_tiles, position_tiles;
  int shared_bytes;
};

template <class S>
__device__ void stage_weights(const Correlation<S>& p, int64_t first_group, int groups,
                              Compute<S>* staged) {
  const int taps = static_cast<int>(p.kernel_size), channels = static_cast<int>(p.channels);
  const int rows = static_cast<int>(p.rows), count = groups * rows * channels * taps;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int tap = i % taps, channel = i / taps % channels, row = i / taps / channels;
    staged[i] = to_compute(
        p.weight[(first_group + row / rows) * p.weight_group + row % rows * p.weight_row +
                 channel * p.weight_channel + tap * p.weight_tap]);
  }
}

// The outputs of one class in a tile. `first` is the tile's first output of the class.
template <class S, bool kWide>
__device__ void correlate_class(const Depthwise<S>& d, const Window<S>& window,
                                const Compute<S>* weights, int64_t first_group, int groups,
                                int64_t first, int index) {
  using C = Compute<S>;
  const Correlation<S>& p = d.p;
  const ClassTaps taps = d.taps.classes[index];
  const int spread = kWide ? kSpread : d.spread, step = kWide ? 1 : static_cast<int>(p.step);
  const int rows = static_cast<int>(p.rows), channels = static_cast<int>(p.channels);
  const int log2_units = d.log2_outputs - kLog2Sums;
  const int units = groups * rows << log2_units;
  for (int unit = threadIdx.x; unit < units; unit += kThreads) {
    const int row = unit >> log2_units, in_row = unit & ((1 << log2_units) - 1);
    const int q = in_row / spread * (spread * kSums) + in_row % spread;
    C sums[kSums] = {};
    for (int channel = 0; channel < channels; ++channel) {
      const C* in = window.line(row / rows * channels + channel) + q * step + taps.in;
      const C* w = weights + (row * channels + channel) * static_cast<int>(p.kernel_size);
      w += taps.weight;
#pragma unroll 4
      for (int tap = 0; tap < taps.count; ++tap, in += d.taps.in_step, w += d.taps.weight_step) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) sums[i] += *w * in[i * spread * step];
      }
    }
    const int64_t out_row = first_group * rows + row;
    const C bias = p.bias == nullptr ? C(0) : to_compute(p.bias[out_row * p.bias_stride]);
    S* out = p.out + (window.sample * p.groups * rows + out_row) * p.outputs;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int64_t position = (first + q + i * spread) * p.classes + index;
      if (position < p.outputs)
        out[position] = from_compute<S>(activate(p.activation, sums[i] + bias));
    }
  }
}

template <class S, bool kWide>
__global__ void __launch_bounds__(kThreads) depthwise_kernel(Depthwise<S> d) {
  const Correlation<S>& p = d.p;
  Compute<S>* staged = reinterpret_cast<Compute<S>*>(shared_memory());
  Compute<S>* weights = staged + d.groups * static_cast<int>(p.channels) * d.pitch;
  const int64_t tiles = p.batch * d.group_tiles * d.position_tiles;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile % d.position_tiles << d.log2_outputs;
    const int64_t first_group = tile / d.position_tiles % d.group_tiles * d.groups;
    const int64_t sample = tile / d.position_tiles / d.group_tiles;
    const int64_t left = p.groups - first_group;
    const int groups = left < d.groups ? static_cast<int>(left) : d.groups;
    const Window<S> window{p.in,
                           sample,
                           first_group * p.channels,
                           d.taps.begin + first * p.step,
                           p.length,
                           groups * static_cast<int>(p.channels),
                           d.width,
                           d.pitch,
                           staged};
    stage_weights(p, first_group, groups, weights);
    stage(window);
    __syncthreads();
    for (int index = 0; index < static_cast<int>(p.classes); ++index)
      correlate_class<S, kWide>(d, window, weights, first_group, groups, first, index);
    __syncthreads();
  }
}

int64_t power_of_two_from(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

template <class S>
void size_tile(Depthwise<S>& d, int64_t outputs, int64_t groups) {
  const Correlation<S>& p = d.p;
  d.groups = static_cast<int>(groups);
  d.log2_outputs = 0;
  while (int64_t{1} << d.log2_outputs < outputs) ++d.log2_outputs;
  d.spread = static_cast<int>(outputs / kSums < kSpread ? outputs / kSums : kSpread);
  d.width = d.taps.window(outputs, p.step);
  d.pitch = window_pitch(p.in, d.width);
  const int64_t elements =
      groups * p.channels * d.pitch + groups * p.rows * p.channels * p.kernel_size;
  d.shared_bytes = static_cast<int>(elements * sizeof(Compute<S>));
}

// Long rows alone, short ones together; channels that are neighbours in memory together, as many as
// make whole sectors of it.
template <class S>
void choose_tile(Depthwise<S>& d) {
  const Correlation<S>& p = d.p;
  constexpr int64_t kChannelsTogether = 32;
  const int64_t moved = p.step > p.classes ? p.step : p.classes;  // for an output of one class
  const int64_t of_class = power_of_two_from(divide_up(p.outputs, p.classes));
  const bool together = along_channels(p.in);
  int64_t outputs = kElements / (together ? kChannelsTogether : 1);
  while (outputs > kSums * kSpread && outputs * moved > kElements) outputs /= 2;
  while (outputs > kSpread && outputs > of_class) outputs /= 2;
  int64_t groups = power_of_two_from(p.groups);
  while (groups > 1 && groups * p.channels * outputs * moved > kElements) groups /= 2;
  if (!together && groups > kChannelsTogether) groups = kChannelsTogether;
  size_tile(d, outputs, groups);
  while (d.shared_bytes > kSharedBytes && groups > 1) size_tile(d, outputs, groups /= 2);
  while (d.shared_bytes > kMostSharedBytes && outputs > kSpread) size_tile(d, outputs /= 2, groups);
}

}  // namespace

template <class S>
cudaError_t correlate_depthwise(const Correlation<S>& p, cudaStream_t stream) {
  Depthwise<S> d{};
  d.p = p;
  d.taps = taps_of(p);
  choose_tile(d);
  d.group_tiles = divide_up(p.groups, d.groups);
  d.position_tiles = divide_up(divide_up(p.outputs, p.classes), int64_t{1} << d.log2_outputs);
  const int64_t tiles = p.batch * d.group_tiles * d.position_tiles;
  const bool wide = p.step == 1 && d.spread == kSpread;
  return launch(wide ? &depthwise_kernel<S, true> : &depthwise_kernel<S, false>, tiles, kThreads,
                d.shared_bytes, stream, d);
}

#define CONVLM_INSTANTIATE(S) \
  template cudaError_t correlate_depthwise<S>(const Correlation<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
