// Both gradients of depthwise layers in one pass over grad_output and x: what memory moves decides,
// and each vector of grad_output serves both.

// The most taps whose weights and sums fit in the registers.
constexpr int kMaxSharedTaps = CONVLM_VECTOR_BYTES == 64 ? 8 : 4;

// A grad_input of this size, with grad_output and x, is more than most caches hold: written past
// them it need not be read first.
constexpr int64_t kStreamedBytes = 16 << 20;

template <class S>
struct GradientsRow {
  const S *grad, *x;
  const Compute<S>* weight;  // [taps]
  const int64_t* offset;     // [taps]
  int64_t count;
  S* out;             // out[s] = sum over j of weight[j] * grad[s + offset[j]]
  bool stream;        // `out` past the caches, if it is aligned
  Compute<S>* lanes;  // of sum[j] += sum over s of x[s] * grad[s + offset[j]]
};

template <class S, int TAPS>
void gradients_row(const GradientsRow<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int kParts = CONVLM_VECTOR_BYTES == 64 ? 2 : 1;
  Vector<T> sum[kParts][TAPS], weight[TAPS];
  const S* grad[TAPS];
#pragma GCC unroll 8
  for (int j = 0; j < TAPS; ++j) {
    weight[j] = broadcast(p.weight[j]);
    grad[j] = p.grad + p.offset[j];
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) sum[part][j] = Vector<T>{};
  }
  const S* const x_row = p.x;  // or it would be read again after each store
  S* const out_row = p.out;
  const int64_t count = p.count;
  const bool stream = p.stream && reinterpret_cast<uintptr_t>(out_row) % CONVLM_VECTOR_BYTES == 0;
  int64_t s = 0;
  for (; s + kParts * W <= count; s += kParts * W)
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      const Vector<T> x = load(x_row + s + part * W);
      Vector<T> out{};
#pragma GCC unroll 8
      for (int j = 0; j < TAPS; ++j) {
        Vector<T> g = load(grad[j] + s + part * W);
        keep(g);
        out += weight[j] * g;
        sum[part][j] += x * g;
      }
      if (stream)
        store_past_caches(out_row + s + part * W, out);
      else
        store(out_row + s + part * W, out);
    }
  for (; s < count; s += W) {
    const int width = static_cast<int>(smaller(W, count - s));
    const Vector<T> x = load_partial(x_row + s, width);
    Vector<T> out{};
#pragma GCC unroll 8
    for (int j = 0; j < TAPS; ++j) {
      const Vector<T> g = load_partial(grad[j] + s, width);
      out += weight[j] * g;
      sum[0][j] += x * g;
    }
    store_partial(out_row + s, out, width);
  }
#pragma GCC unroll 8
  for (int j = 0; j < TAPS; ++j) {
    if constexpr (kParts == 2) sum[0][j] += sum[1][j];
    store(p.lanes + j * W, load(p.lanes + j * W) + sum[0][j]);
  }
}

template <class S, int... I>
CONVLM_INLINE void select_gradients_row(const GradientsRow<S>& p, int64_t taps,
                                        std::integer_sequence<int, I...>) {
  static constexpr void (*table[])(const GradientsRow<S>&) = {&gradients_row<S, I + 1>...};
  table[taps - 1](p);
}

// `p` is grad_input as a correlation, `q` is grad_weight: both of one channel per group, stride 1
// and rows that lie in one piece, with no more than kMaxSharedTaps.
template <class S>
void gradients_depthwise(const Correlation<S>& p, const WeightGradient<S>& q) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const SlidingInput input = sliding_input(p);
  const bool stream =
      p.batch * p.groups * p.outputs * static_cast<int64_t>(sizeof(S)) >= kStreamedBytes;
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * p.taps));
  pack_all_rows(p, weights);
  sum_stretches(q, [&](int64_t n, int64_t group, int64_t first, int64_t count, T* lanes) {
    const S* grad = p.in + n * p.in_batch + group * p.in_channel;
    const S* x = q.x + n * q.x_batch + group * q.x_channel;
    S* out = p.out + n * p.out_batch + group * p.out_group;
    const T* weight = weights + group * p.taps;
    // The outputs' share of the positions.
    const int64_t begin = p.outputs * first / q.outputs;
    const int64_t end = p.outputs * (first + count) / q.outputs;
    const int64_t inner = smaller(end, larger(begin, input.begin));
    const int64_t outer = larger(inner, smaller(end, input.end));
    const auto edge = [&](int64_t from, int64_t to) {
      correlate_stretch(p, input, n, group, weight, from, to);
      // No product has a zero for what is missing: where x is infinite it would be a NaN.
      for (int64_t j = 0; j < p.taps; ++j) {
        const int64_t low = larger(from, -p.tap_offset[j]);
        const int64_t high = smaller(to, p.length - p.tap_offset[j]);
        const S *a = grad + low + p.tap_offset[j], *b = x + low;
        if (low < high) dot_products<S, S, 1, 1, true>({&a, &b, high - low, lanes + j * W, 1});
      }
    };
    if (begin < inner) edge(begin, inner);
    select_gradients_row(GradientsRow<S>{grad + inner, x + inner, weight, p.tap_offset,
                                         outer - inner, out + inner, stream, lanes},
                         p.taps, std::make_integer_sequence<int, kMaxSharedTaps>{});
    if (outer < end) edge(outer, end);
    if (q.grad_bias != nullptr) add_row(grad + first, count, lanes + p.taps * W);
  });
}
