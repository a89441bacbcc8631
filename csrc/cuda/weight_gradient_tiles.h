// The gradient of the weight by tiles: a block makes the sums of some rows by 128 columns, each of
// them a channel at a tap, over a piece of all positions of all samples.
//
// The sums run over positions, which are rows of shared memory (see tile_vectors.h) for both
// factors. A tap reads the same staged x from another row on, as far as neighbouring taps share
// positions: without a stride, and where all positions of a stage are of one sample. Elsewhere
// every tap has rows of its own, and zeros where it reads nothing.
//
// How positions are cut into pieces depends on the geometry alone. Their sums go to the workspace,
// and a second kernel adds them up in order: no atomics, the same bits every time.
#pragma once
#include "cuda/long_sums.h"
#include "cuda/weight_gradient_plan.h"

namespace convlm::cuda {

// A sample and the first of its outputs that a stage takes; it goes on with the next samples.
struct Cursor {
  int64_t sample, output;
};

template <class Sums>
class WeightGradientBlock {
 public:
  using S = typename Sums::Element;
  using Sum = typename Sums::Sum;

  __device__ __forceinline__ WeightGradientBlock(const WeightGradient<S>& p,
                                                 const WeightGradientPlan& plan, Sum* weight_sums,
                                                 Sum* bias_sums)
      : p_(p),
        plan_(plan),
        weight_sums_(weight_sums),
        bias_sums_(bias_sums),
        thread_(static_cast<int>(threadIdx.x)) {}

  __device__ __forceinline__ void run(int64_t index) {
    // Blocks that run at the same time share positions.
    first_row_ = index % plan_.row_tiles * Sums::kRows;
    index /= plan_.row_tiles;
    first_channel_ = index % plan_.channel_tiles * plan_.tap_octets.value() * kOctet;
    index /= plan_.channel_tiles;
    first_tap_ = index % plan_.tap_tiles * plan_.taps;
    index /= plan_.tap_tiles;
    group_ = index % p_.groups;
    piece_ = index / p_.groups;
    makes_bias_ =
        p_.grad_bias != nullptr && first_channel_ == 0 && first_tap_ == 0 && thread_ < Sums::kRows;
    bias_ = 0;
    sums_.clear();
    add_products();
    store_sums();
    __syncthreads();
  }

 private:
  static constexpr int kPositions = kStagePositions<S>;
  static constexpr bool kInChains = kChainStages<Sums> > 0;
  static constexpr int kLeftVectors = Sums::kRows / kVector<S> * kPositions / Sums::kThreads;
  static constexpr int kRightVectors = kTileColumns / kVector<S> * kPositions / Sums::kThreads;
  struct Held {
    Vector<S> left[kLeftVectors], right[kRightVectors];
  };

  __device__ __forceinline__ bool shares(const Cursor& cursor) const {
    return plan_.shares && cursor.output + kPositions <= p_.outputs;
  }

  // The cursor, some outputs on.
  __device__ __forceinline__ Cursor at(const Cursor& cursor, int further) const {
    const int64_t output = cursor.output + further;
    if (output < p_.outputs) return {cursor.sample, output};
    const int beyond = static_cast<int>(output - p_.outputs);  // below `further`
    if (beyond < p_.outputs) return {cursor.sample + 1, beyond};
    const int outputs = static_cast<int>(p_.outputs);
    return {cursor.sample + 1 + beyond / outputs, beyond % outputs};
  }

  __device__ __forceinline__ void add_products() {
    unsigned char* buffers = shared_memory();
    const int64_t first = piece_ * plan_.piece_stages;
    int64_t end = first + plan_.piece_stages;
    if (end > plan_.stages) end = plan_.stages;
    Cursor cursor{};
    Cursor following{first * kPositions / p_.outputs, first * kPositions % p_.outputs};
    if constexpr (kInChains)
      if (plan_.in_chains) sums_.clear_totals(totals());
    for (int64_t stage = first;; ++stage) {  // the one that is read; the one before is multiplied
      unsigned char* later = buffers + stage % 2 * plan_.stage_bytes;
      Held held;
      if (stage < end) read(held, following);
      if (stage > first) multiply(buffers + (stage + 1) % 2 * plan_.stage_bytes, cursor);
      if (stage == end) break;
      store(held, later, following);
      if constexpr (kInChains)
        if (stage > first && (stage - first) % kChainStages<Sums> == 0) sums_.move_to(totals());
      __syncthreads();
      cursor = following;
      following = at(cursor, kPositions);
    }
    if constexpr (kInChains)
      if (plan_.in_chains) sums_.add(totals());
  }

  __device__ __forceinline__ Sum* totals() const {
    return reinterpret_cast<Sum*>(shared_memory() + 2 * plan_.stage_bytes);
  }

  __device__ __forceinline__ void multiply(const unsigned char* buffer, const Cursor& cursor) {
    const int tap_rows = shares(cursor) ? static_cast<int>(p_.dilation) : kPositions;
    const auto places = sums_.places_of_octets(plan_.right_pitch, [&](int octet) {
      const int tap = plan_.tap_octets.divide(octet);
      const int octet_of_tap = octet - tap * plan_.tap_octets.value();
      // Columns beyond the last tap are not stored: they may be anything.
      return tap < plan_.taps ? tap * tap_rows * plan_.right_pitch +
                                    octet_of_tap * kOctet * static_cast<int>(sizeof(S))
                              : 0;
    });
    sums_.add_columns(buffer, plan_.left_pitch, buffer + kPositions * plan_.left_pitch,
                      plan_.right_pitch, places);
    if (!makes_bias_) return;
    Sum chain = Sum(0);
    for (int i = 0; i < kPositions; ++i)
      chain += to_compute(reinterpret_cast<const S*>(buffer + i * plan_.left_pitch)[thread_]);
    bias_ += chain;
  }

  __device__ __forceinline__ void read(Held& held, const Cursor& cursor) const {
#pragma unroll
    for (int i = 0; i < kLeftVectors; ++i) {
      const int task = thread_ + i * Sums::kThreads;
      const int64_t row = first_row_ + task / kPositions * kVector<S>;
      const Cursor c = at(cursor, task % kPositions);
      held.left[i] = c.sample < p_.batch && row < p_.rows
                         ? read_channels(p_.grad_output, c.sample, group_ * p_.rows + row,
                                         p_.rows - row, c.output)
                         : Vector<S>{};
    }
    for_right(cursor, [&](int i, int row, int vector) {
      const int64_t channel = first_channel_ + vector * kVector<S>;
      Cursor c;
      int64_t tap = first_tap_;
      if (shares(cursor)) {
        c = {cursor.sample, cursor.output + row};
      } else {
        c = at(cursor, row % kPositions);
        tap += row / kPositions;
      }
      const int64_t position = input_position(c.output, tap, p_.stride, p_.dilation, p_.pad_left);
      const bool inside = c.sample < p_.batch && tap < p_.kernel_size && 0 <= position &&
                          position < p_.length && channel < p_.channels;
      held.right[i] = inside ? read_channels(p_.x, c.sample, group_ * p_.channels + channel,
                                             p_.channels - channel, position)
                             : Vector<S>{};
    });
  }

  __device__ __forceinline__ void store(const Held& held, unsigned char* buffer,
                                        const Cursor& cursor) const {
#pragma unroll
    for (int i = 0; i < kLeftVectors; ++i) {
      const int task = thread_ + i * Sums::kThreads;
      store_prepared<Sums>(
          buffer + task % kPositions * plan_.left_pitch + task / kPositions * kVectorBytes,
          held.left[i]);
    }
    unsigned char* right = buffer + kPositions * plan_.left_pitch;
    for_right(cursor, [&](int i, int row, int vector) {
      store_prepared<Sums>(right + row * plan_.right_pitch + vector * kVectorBytes, held.right[i]);
    });
  }

  // f(i, row, vector) for the vectors of x that this thread stages.
  template <class F>
  __device__ __forceinline__ void for_right(const Cursor& cursor, const F& f) const {
    const Divisor& rows = shares(cursor) ? plan_.shared_rows : plan_.own_rows;
    const int vectors = plan_.tap_octets.value() * kOctet / kVector<S>;
#pragma unroll
    for (int i = 0; i < kRightVectors; ++i) {
      const int task = thread_ + i * Sums::kThreads;
      const int vector = rows.divide(task);
      if (vector < vectors) f(i, task - vector * rows.value(), vector);
    }
  }

  __device__ __forceinline__ void store_sums() const {
    const int64_t rows = p_.groups * p_.rows;
    const int64_t above = (piece_ * p_.groups + group_) * p_.rows + first_row_;
    sums_.visit_columns([&](int row, int column, Sum sum) {
      const int tap = plan_.tap_octets.divide(column / kOctet);
      const int64_t channel = first_channel_ + column - tap * plan_.tap_octets.value() * kOctet;
      if (first_row_ + row < p_.rows && tap < plan_.taps && first_tap_ + tap < p_.kernel_size &&
          channel < p_.channels)
        weight_sums_[((above + row) * p_.kernel_size + first_tap_ + tap) * p_.channels + channel] =
            sum;
    });
    if (makes_bias_ && first_row_ + thread_ < p_.rows)
      bias_sums_[piece_ * rows + group_ * p_.rows + first_row_ + thread_] = static_cast<Sum>(bias_);
  }

  const WeightGradient<S>& p_;
  const WeightGradientPlan& plan_;
  Sum *weight_sums_, *bias_sums_;
  int thread_;
  int64_t first_row_, first_channel_, first_tap_, group_, piece_;
  bool makes_bias_;
  double bias_;
  Sums sums_;
};

template <class Sums, class S, class Sum>
__global__ void __launch_bounds__(Sums::kThreads)
    weight_gradient_kernel(const __grid_constant__ WeightGradient<S> p,
                           const __grid_constant__ WeightGradientPlan plan, Sum* weight_sums,
                           Sum* bias_sums) {
  WeightGradientBlock<Sums> block(p, plan, weight_sums, bias_sums);
  for (int64_t tile = blockIdx.x; tile < plan.tiles; tile += gridDim.x) block.run(tile);
}

constexpr int kAddingThreads = 256;

// Adds up the sums of all pieces, for the weight and then for the bias.
template <class S, class Sum>
__global__ void __launch_bounds__(kAddingThreads)
    add_pieces_kernel(const __grid_constant__ WeightGradient<S> p, int64_t pieces,
                      const Sum* weight_sums, const Sum* bias_sums) {
  const int64_t rows = p.groups * p.rows;
  const int64_t weights = rows * p.kernel_size * p.channels;
  const int64_t count = weights + (p.grad_bias != nullptr ? rows : 0);
  const int64_t threads = int64_t{gridDim.x} * kAddingThreads;
  for (int64_t i = int64_t{blockIdx.x} * kAddingThreads + threadIdx.x; i < count; i += threads) {
    const bool is_bias = i >= weights;
    const Sum* sums = is_bias ? bias_sums + (i - weights) : weight_sums + i;
    const int64_t step = is_bias ? rows : weights;
    const Sum sum =
        sum_in_chains<Sum>(0, pieces, 1, [&](int64_t piece) { return sums[piece * step]; });
    if (is_bias) {
      p.grad_bias[i - weights] = from_compute<S>(sum);
    } else {
      const int64_t channel = i % p.channels, tap = i / p.channels % p.kernel_size;
      const int64_t row = i / p.channels / p.kernel_size;
      p.grad_weight[(row * p.channels + channel) * p.kernel_size + tap] = from_compute<S>(sum);
    }
  }
}

template <class Sums>
int64_t weight_gradient_workspace(const WeightGradient<typename Sums::Element>& p) {
  return plan<Sums>(p).pieces * (sums_of_piece(p) + p.groups * p.rows) *
         static_cast<int64_t>(sizeof(typename Sums::Sum));
}

template <class Sums>
cudaError_t weight_gradient(const WeightGradient<typename Sums::Element>& p, void* workspace,
                            cudaStream_t stream) {
  using S = typename Sums::Element;
  using Sum = typename Sums::Sum;
  const WeightGradientPlan tiles = plan<Sums>(p);
  Sum* weight_sums = static_cast<Sum*>(workspace);
  Sum* bias_sums = weight_sums + tiles.pieces * sums_of_piece(p);
  const cudaError_t error =
      launch(&weight_gradient_kernel<Sums, S, Sum>, tiles.tiles, Sums::kThreads, tiles.shared_bytes,
             stream, p, tiles, weight_sums, bias_sums);
  if (error != cudaSuccess) return error;
  return launch(&add_pieces_kernel<S, Sum>,
                divide_up(sums_of_piece(p) + p.groups * p.rows, kAddingThreads), kAddingThreads, 0,
                stream, p, tiles.pieces, weight_sums, bias_sums);
}

}  // namespace convlm::cuda
