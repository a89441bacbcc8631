// The correlation with one channel per group, or few: next to nothing is shared between rows, so
// memory decides. Each row of the output is one pass over its row of the input.

// The input of one group as kernels of few channels read it: product c * taps + j of output q is
// in[q + offset[c * taps + j]], which is in place wherever that will do. What steps by more than
// one is staged, and so are the outputs that need padding.
struct SlidingInput {
  static constexpr int64_t kOutputs = 1024;      // staged at once
  static constexpr int64_t kFewestInPlace = 32;  // vectors; else stretches cost more than a copy

  int64_t channels, channel_stride, position_stride;
  int64_t length, in_step, taps;
  int64_t begin, end;  // the outputs that read nothing but the input, in place
  int64_t* offset;     // [channels * taps] in place, then as many in the stage
  Staging staging;

  int64_t products() const { return channels * taps; }
};

inline int64_t* scratch_numbers(Slot slot, int64_t count) {
  return static_cast<int64_t*>(scratch(slot, sizeof(int64_t) * count));
}

// How many numbers slide() keeps in `memory`.
template <class Problem>
int64_t sliding_input_numbers(const Problem& p) {
  return 2 * (p.taps + p.products());
}
template <class Problem>
SlidingInput slide(const Problem& p, int64_t channel_stride, int64_t position_stride,
                   int64_t in_step, int lanes, int64_t* memory) {
  SlidingInput s{};
  s.channels = p.channels;
  s.channel_stride = channel_stride;
  s.position_stride = position_stride;
  s.length = p.length;
  s.in_step = in_step;
  s.taps = p.taps;
  int64_t first = p.tap_offset[0], last = p.tap_offset[0];
  for (int64_t j = 1; j < p.taps; ++j) {
    first = smaller(first, p.tap_offset[j]);
    last = larger(last, p.tap_offset[j]);
  }
  if (in_step == 1 && position_stride == 1) {
    // Whole vectors before it leave the rest of a row as aligned as the row is.
    s.begin = smaller(p.outputs, divide_up(larger(0, -first), lanes) * lanes);
    s.end = larger(s.begin, smaller(p.outputs, p.length - last));
    if (s.end - s.begin < smaller(p.outputs, SlidingInput::kFewestInPlace * lanes))
      s.begin = s.end = p.outputs;
  }
  s.staging.stream_start = memory;
  s.staging.tap_start = memory + p.taps;
  s.offset = memory + 2 * p.taps;
  plan_for_vectors(s.staging, SlidingInput::kOutputs, in_step, p.tap_offset, p.taps, lanes);
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t j = 0; j < p.taps; ++j) {
      s.offset[c * p.taps + j] = c * channel_stride + p.tap_offset[j];
      s.offset[s.products() + c * p.taps + j] =
          c * s.staging.channel_pitch() + s.staging.tap_start[j];
    }
  return s;
}

// Calls body(in + q, offset, q, count) for stretches of outputs q, q + 1, ... that together are
// [first, last).
template <class S, class Body>
CONVLM_INLINE void for_each_stretch(const SlidingInput& s, const S* in, int64_t first, int64_t last,
                                    const Body& body) {
  const auto staged = [&](int64_t from, int64_t to) {
    if (from >= to) return;
    Staging staging = s.staging;
    Compute<S>* out = static_cast<Compute<S>*>(
        scratch(Slot::staged, sizeof(Compute<S>) * s.channels * staging.channel_pitch()));
    for (int64_t q = from; q < to; q += SlidingInput::kOutputs) {
      const int64_t count = smaller(SlidingInput::kOutputs, to - q);
      staging.width = s.staging.width - SlidingInput::kOutputs + count;
      stage(staging, in, s.channels, s.channel_stride, s.position_stride, s.length, q * s.in_step,
            out);
      body(const_cast<const Compute<S>*>(out), s.offset + s.products(), q, count);
    }
  };
  const int64_t inner = smaller(last, larger(first, s.begin));
  const int64_t outer = larger(inner, smaller(last, s.end));
  staged(first, inner);
  if (inner < outer) body(in + inner, s.offset, inner, outer - inner);
  staged(outer, last);
}

// sum[v][:] = sum over j of weight[j] * load(in + offset[j], v), in chains.
template <int VECTORS, class In, class T, class Load>
CONVLM_INLINE void sum_products(const In* in, const T* weight, const int64_t* offset,
                                int64_t products, const Load& load, Vector<T> (&sum)[VECTORS]) {
  const int64_t chain = Chains(1, products, kForwardChain<T>).inner;
  for (int64_t first = 0; first < products; first += chain) {
    Vector<T> more[VECTORS] = {};
    for (int64_t j = first; j < smaller(products, first + chain); ++j)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) more[v] += weight[j] * load(in + offset[j], v);
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sum[v] = first == 0 ? more[v] : sum[v] + more[v];
  }
}

template <class In, class S>
struct RowOfProducts {
  const In* in;
  const Compute<S>* weight;
  const int64_t* offset;
  int64_t products;
  Compute<S> bias;
  Activation activation;
  S* out;
};

// Vectors of one row: the last one begins at `last`, which for a lone one is `first`.
template <class In, class S, int VECTORS>
void correlate_vectors(const RowOfProducts<In, S>& p, int64_t first, int64_t last) {
  using T = Compute<S>;
  const auto start = [&](int v) { return v + 1 == VECTORS ? last - first : v * kLanes<T>; };
  Vector<T> sum[VECTORS] = {};
  sum_products(
      p.in + first, p.weight, p.offset, p.products,
      [&](const In* in, int v) { return load(in + start(v)); }, sum);
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v)
    store(p.out + first + start(v), activate(sum[v] + p.bias, p.activation));
}

template <class In, class S, int... V>
CONVLM_INLINE void correlate_row(const RowOfProducts<In, S>& p, int64_t count,
                                 std::integer_sequence<int, V...>) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  static constexpr void (*table[])(const RowOfProducts<In, S>&, int64_t,
                                   int64_t) = {&correlate_vectors<In, S, V + 1>...};
  if (count < W) {
    const int width = static_cast<int>(count);
    Vector<T> sum[1] = {};
    sum_products(
        p.in, p.weight, p.offset, p.products,
        [&](const In* in, int) { return load_partial(in, width); }, sum);
    return store_partial(p.out, activate(sum[0] + p.bias, p.activation), width);
  }
  // The last blocks share what is left, as a narrow one would wait for its sums, and the last
  // vector overlaps the one before, as partial ones are slow to load.
  constexpr int64_t kMost = sizeof...(V);
  for (int64_t q = 0, width; q < count; q += width * W) {
    const int64_t left = divide_up(count - q, W);
    width = left <= kMost ? left : left < 2 * kMost ? left / 2 : kMost;
    table[width - 1](p, q, smaller(q + (width - 1) * W, count - W));
  }
}

// out[q] = activation(bias + sum over j of weight[j] * in[q + offset[j]]) for q < count.
template <class In, class S>
void correlate_row(const In* in, const Compute<S>* weight, const int64_t* offset, int64_t products,
                   Compute<S> bias, Activation activation, int64_t count, S* out) {
  constexpr int kMostVectors = 5;
  correlate_row(RowOfProducts<In, S>{in, weight, offset, products, bias, activation, out}, count,
                std::make_integer_sequence<int, kMostVectors>{});
}

// Weights of all rows of all groups, each in the order of the products; returns where they end.
template <class S>
Compute<S>* pack_all_rows(const Correlation<S>& p, Compute<S>* out) {
  for (int64_t group = 0; group < p.groups; ++group)
    for (int64_t row = 0; row < p.rows; ++row) {
      const S* source = p.weight + group * p.weight_group + row * p.weight_row;
      for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t j = 0; j < p.taps; ++j)
          *out++ = to_compute(source[c * p.weight_channel + p.tap_index[j] * p.weight_tap]);
    }
  return out;
}

template <class S>
const S* input_of(const Correlation<S>& p, int64_t n, int64_t group) {
  return p.in + n * p.in_batch + group * p.channels * p.in_channel;
}

// Outputs [first, last) of one sample and group; `weight` are those of its rows.
template <class S>
void correlate_stretch(const Correlation<S>& p, const SlidingInput& input, int64_t n, int64_t group,
                       const Compute<S>* weight, int64_t first, int64_t last) {
  for_each_stretch(input, input_of(p, n, group), first, last,
                   [&](auto* in, const int64_t* offset, int64_t q, int64_t count) {
                     for (int64_t m = 0; m < p.rows; ++m)
                       correlate_row(
                           in, weight + m * p.products(), offset, p.products(),
                           bias_of(p, group * p.rows + m), p.activation, count,
                           p.out + n * p.out_batch + group * p.out_group + m * p.out_row + q);
                   });
}

template <class S>
SlidingInput sliding_input(const Correlation<S>& p, int64_t* memory) {
  return slide(p, p.in_channel, p.in_position, p.in_step, kLanes<Compute<S>>, memory);
}
template <class S>
SlidingInput sliding_input(const Correlation<S>& p) {
  return sliding_input(p, scratch_numbers(Slot::plan, sliding_input_numbers(p)));
}

// The blocks of all rows of all samples in turn. To find them from a job's number by divisions
// would cost as much as a few vectors of a short row.
struct RowBlock {
  int64_t groups, blocks, sample, group, block;

  RowBlock(int64_t groups, int64_t blocks, int64_t index)
      : groups(groups),
        blocks(blocks),
        sample(index / blocks / groups),
        group(index / blocks % groups),
        block(index % blocks) {}
  void operator++() {
    if (++block < blocks) return;
    block = 0;
    if (++group < groups) return;
    group = 0;
    ++sample;
  }
  // The block's share of `count`.
  int64_t first(int64_t count) const { return blocks == 1 ? 0 : count * block / blocks; }
  int64_t last(int64_t count) const { return blocks == 1 ? count : count * (block + 1) / blocks; }
};

template <class S>
void correlate_depthwise(const Correlation<S>& p) {
  using T = Compute<S>;
  const SlidingInput input = sliding_input(p);
  const int64_t blocks = divide_up(p.outputs, 16 * 1024);  // of a row, for threads to share
  const int64_t jobs = p.batch * p.groups * blocks, row_products = p.rows * p.products();
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * row_products));
  pack_all_rows(p, weights);
  parallel_jobs(jobs, row_products * divide_up(p.outputs, blocks), [&](int64_t begin, int64_t end) {
    RowBlock row(p.groups, blocks, begin);
    for (int64_t job = begin; job < end; ++job, ++row)
      correlate_stretch(p, input, row.sample, row.group, weights + row.group * row_products,
                        row.first(p.outputs), row.last(p.outputs));
  });
}
