// Windows of the input in shared memory, as numbers to compute with: what lies outside the input is
// zero there, a gradient is already multiplied by its activation's derivative, and which layout the
// input has no longer matters.
#pragma once
#include "cuda/problem.h"
#include "cuda/vector.h"

namespace convlm::cuda {

// Positions [begin, begin + width) of `lines` channels of a sample; `length` positions exist. Line
// i of the window starts at line(i).
template <class S>
struct Window {
  Input<S> in;
  int64_t sample, channel, begin, length;
  int lines, width, pitch;
  Compute<S>* staged;

  // Where positions are neighbours, a line starts as far past 16 bytes as it does in the input:
  // then vectors are loaded and stored whole.
  __device__ int shift(int line) const {
    return in.position == 1 ? misalignment(in.data, offset(line, begin)) : 0;
  }
  __device__ Compute<S>* line(int i) const { return staged + i * pitch + shift(i); }

  __device__ int64_t offset(int line, int64_t position) const {
    return sample * in.batch + (channel + line) * in.channel + position * in.position;
  }
  __device__ int64_t offset_of_y(int line, int64_t position) const {
    return sample * in.y_batch + (channel + line) * in.y_channel + position * in.y_position;
  }
  // Whether the vectors at a position can be loaded as such.
  __device__ bool aligned(int line, int64_t position) const {
    return misalignment(in.data, offset(line, position)) == 0 &&
           (in.y == nullptr || misalignment(in.y, offset_of_y(line, position)) == 0);
  }
  __device__ Compute<S> value(int line, int64_t position) const {
    const bool inside = 0 <= position && position < length;
    return inside ? read(in, sample, channel + line, position) : Compute<S>(0);
  }
};

// Channels next to each other, as in channels-last tensors: vectors run along them.
template <class S>
__host__ __device__ bool along_channels(const Input<S>& in) {
  return in.channel == 1 && in.position != 1;
}

// How far apart the lines of a window are. Vectors along positions keep lines aligned. Vectors
// along channels are stored element by element: at 9 words (modulo the 32 banks) from line to line,
// the lanes of a warp meet in no bank, neither then nor when eight of them read each of four lines.
template <class S>
int window_pitch(const Input<S>& in, int width) {
  if (along_channels(in)) return width + (9 - width % 32 + 32) % 32;
  const int vectors = (width + 2 * kVector<S> - 2) / kVector<S>;
  return vectors * kVector<S>;
}

// The vector of `in` at an offset, multiplied by the derivative at that of y.
template <class S>
__device__ __forceinline__ void load_values(const Input<S>& in, int64_t offset, int64_t offset_of_y,
                                            Compute<S> (&values)[kVector<S>]) {
  const Vector<S> loaded = load_vector(in.data + offset);
#pragma unroll
  for (int e = 0; e < kVector<S>; ++e) values[e] = to_compute(loaded.lanes[e]);
  if (in.y == nullptr) return;
  const Vector<S> y = load_vector(in.y + offset_of_y);
#pragma unroll
  for (int e = 0; e < kVector<S>; ++e)
    values[e] = times_derivative(in.activation, values[e], to_compute(y.lanes[e]));
}

template <int count, class C>
__device__ __forceinline__ void store_values(C* to, const C (&values)[count]) {
#pragma unroll
  for (int e = 0; e < count; e += kVector<C>) {
    Vector<C> vector;
#pragma unroll
    for (int i = 0; i < kVector<C>; ++i) vector.lanes[i] = values[e + i];
    store_vector(to + e, vector);
  }
}

template <class S>
__device__ void stage_along_positions(const Window<S>& w) {
  constexpr int V = kVector<S>;
  const bool neighbours = w.in.position == 1 && (w.in.y == nullptr || w.in.y_position == 1);
  const int vectors = w.pitch / V;
  for (int i = threadIdx.x; i < w.lines * vectors; i += blockDim.x) {
    const int line = i / vectors, first = i % vectors * V;
    const int64_t at = w.begin - w.shift(line) + first;
    Compute<S> values[V];
    if (neighbours && 0 <= at && at + V <= w.length && w.aligned(line, at)) {
      load_values(w.in, w.offset(line, at), w.offset_of_y(line, at), values);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) values[e] = w.value(line, at + e);
    }
    store_values(w.staged + line * w.pitch + first, values);
  }
}

template <class S>
__device__ void stage_along_channels(const Window<S>& w) {
  constexpr int V = kVector<S>;
  const bool neighbours = w.in.y == nullptr || w.in.y_channel == 1;
  const int vectors = (w.lines + V - 1) / V;
  for (int i = threadIdx.x; i < w.width * vectors; i += blockDim.x) {
    const int line = i % vectors * V, at = i / vectors;
    const int64_t position = w.begin + at;
    const int count = line + V <= w.lines ? V : w.lines - line;
    const bool inside = 0 <= position && position < w.length;
    Compute<S> values[V];
    if (neighbours && inside && count == V && w.aligned(line, position)) {
      load_values(w.in, w.offset(line, position), w.offset_of_y(line, position), values);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e)
        values[e] = e < count ? w.value(line + e, position) : Compute<S>(0);
    }
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) w.staged[(line + e) * w.pitch + at] = values[e];
  }
}

// To be called by the whole block; barriers are the caller's.
template <class S>
__device__ void stage(const Window<S>& w) {
  if (along_channels(w.in))
    stage_along_channels(w);
  else
    stage_along_positions(w);
}

// Where the elements of some samples' windows go, in elements.
struct Strides {
  int sample, line, position;
};

// Element by element to anywhere: for windows that are small, or are turned on their way. `w` is
// that of the first sample; its pitch is not used.
template <class S>
__device__ void stage_samples(const Window<S>& w, int samples, const Strides& to) {
  const bool turned = along_channels(w.in);  // neighbouring lanes load neighbours
  const int inner = turned ? w.lines : w.width, outer = turned ? w.width : w.lines;
#pragma unroll 4
  for (int i = threadIdx.x; i < samples * outer * inner; i += blockDim.x) {
    const int fast = i % inner, slow = i / inner % outer, sample = i / inner / outer;
    const int line = turned ? fast : slow, at = turned ? slow : fast;
    const int64_t position = w.begin + at;
    const bool inside = 0 <= position && position < w.length;
    w.staged[sample * to.sample + line * to.line + at * to.position] =
        inside ? read(w.in, w.sample + sample, w.channel + line, position) : Compute<S>(0);
  }
}

}  // namespace convlm::cuda
