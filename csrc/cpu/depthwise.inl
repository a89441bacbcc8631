// The correlation with one channel per group: nothing is shared between rows, so memory decides.
// Each row of the output is one pass over its row of the input, read in place; only the edges are
// staged.

// out[q] = activation(bias + sum over j of weight[j] * in[q + tap_offset[j]]) for q < count.
template <class In, class S>
void correlate_row(const In* in, const Compute<S>* weight, const int64_t* tap_offset, int64_t taps,
                   Compute<S> bias, Activation activation, int64_t count, S* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int kVectors = 4;
  int64_t q = 0;
  for (; q + kVectors * W <= count; q += kVectors * W) {
    Vector<T> sum[kVectors] = {};
    for (int64_t j = 0; j < taps; ++j) {
      const In* p = in + q + tap_offset[j];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] += weight[j] * load(p + v * W);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + q + v * W, activate(sum[v] + bias, activation));
  }
  for (; q < count; q += W) {
    const int width = static_cast<int>(smaller(W, count - q));
    Vector<T> sum{};
    for (int64_t j = 0; j < taps; ++j)
      sum += weight[j] * load_partial(in + q + tap_offset[j], width);
    store_partial(out + q, activate(sum + bias, activation), width);
  }
}

// Outputs [first, last), some of whose taps read padding.
template <class S>
void correlate_edge(const Correlation<S>& p, const S* in, const Compute<S>* weight,
                    int64_t first_tap, int64_t spread, Compute<S> bias, int64_t first, int64_t last,
                    S* out) {
  if (first >= last) return;
  constexpr int64_t kOutputs = 1024;
  Compute<S>* staged = static_cast<Compute<S>*>(
      scratch(Slot::staged, sizeof(Compute<S>) * (smaller(kOutputs, last - first) + spread)));
  for (int64_t q = first; q < last; q += kOutputs) {
    const int64_t count = smaller(kOutputs, last - q);
    stage_row(in, 1, p.length, q + first_tap, 1, staged, count + spread);
    correlate_row(staged - first_tap, weight, p.tap_offset, p.taps, bias, p.activation, count,
                  out + q);
  }
}

template <class S>
void correlate_depthwise(const Correlation<S>& p) {
  using T = Compute<S>;
  int64_t first_tap = p.tap_offset[0], last_tap = p.tap_offset[0];
  for (int64_t j = 1; j < p.taps; ++j) {
    first_tap = smaller(first_tap, p.tap_offset[j]);
    last_tap = larger(last_tap, p.tap_offset[j]);
  }
  // Outputs [begin, end) read nothing but the input.
  const int64_t begin = smaller(p.outputs, larger(0, -first_tap));
  const int64_t end = larger(begin, smaller(p.outputs, p.length - last_tap));
  const int64_t rows = p.groups * p.rows;
  const int64_t blocks = divide_up(p.outputs, 16 * 1024);  // of a row, for threads to share
  const int64_t jobs = p.batch * rows * blocks;
  parallel_jobs(
      jobs, p.taps * divide_up(p.outputs, blocks), [&](int64_t job_begin, int64_t job_end) {
        T* weight = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.taps));
        for (int64_t job = job_begin; job < job_end; ++job) {
          const int64_t block = job % blocks, row = job / blocks % rows, n = job / blocks / rows;
          const int64_t group = row / p.rows, m = row % p.rows;
          const int64_t first = p.outputs * block / blocks, last = p.outputs * (block + 1) / blocks;
          const int64_t inner = smaller(last, larger(first, begin));
          const int64_t outer = larger(inner, smaller(last, end));
          const S* source = p.weight + group * p.weight_group + m * p.weight_row;
          for (int64_t j = 0; j < p.taps; ++j)
            weight[j] = to_compute(source[p.tap_index[j] * p.weight_tap]);
          const T bias = bias_of(p, group * p.rows + m);
          const S* in = p.in + n * p.in_batch + group * p.in_channel;
          S* out = p.out + n * p.out_batch + group * p.out_group + m * p.out_row;
          const int64_t spread = last_tap - first_tap;
          correlate_edge(p, in, weight, first_tap, spread, bias, first, inner, out);
          correlate_row(in + inner, weight, p.tap_offset, p.taps, bias, p.activation, outer - inner,
                        out + inner);
          correlate_edge(p, in, weight, first_tap, spread, bias, outer, last, out);
        }
      });
}
