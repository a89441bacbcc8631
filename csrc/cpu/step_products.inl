// The products of a step: windows of past inputs, one a sample, with a panel of packed weights that
// is read from front to back. Each output is added up in the chains of `multiply`, so it gets the
// bits that a direct kernel of the full forward gives it.

template <class T, class Weight>
struct PanelProduct {
  const T* const* windows;  // of each sample: a scalar for each step of the reduction
  const Weight* weight;     // for each step, `pitch` outputs
  int64_t pitch;
  int64_t outer, inner;
  T* const* sums;  // of each sample
};

// Calls body(begin, end) for each chain, in the order of `multiply`: either a chain covers whole
// outer steps, or it lies within one.
template <class Body>
CONVLM_INLINE void for_each_chain(int64_t outer, int64_t inner, const Body& body) {
  const int64_t inner_chain = divide_up(inner, divide_up(inner, kChain));
  const int64_t outer_chain = larger(1, kChain / inner_chain);
  for (int64_t i = 0; i < inner; i += inner_chain) {
    const int64_t count = smaller(inner_chain, inner - i);
    for (int64_t o = 0; o < outer; o += outer_chain) {
      const int64_t begin = o * inner + i;
      body(begin, begin + smaller(outer_chain, outer - o) * count);
    }
  }
}

// sum[i][j] += the products of steps [begin, end) with vector j behind output `first`.
template <class T, class Weight, int SAMPLES, int VECTORS>
CONVLM_INLINE void add_products(Vector<T> (&sum)[SAMPLES][VECTORS],
                                const PanelProduct<T, Weight>& p, int64_t first, int64_t begin,
                                int64_t end) {
  const Weight* weight = p.weight + begin * p.pitch + first;
  for (int64_t step = begin; step < end; ++step, weight += p.pitch)
  // A vector of weights at a time: with all of them at once there are no registers left.
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) {
      const Vector<T> v = load(weight + j * kLanes<T>);
#pragma GCC unroll 4
      for (int i = 0; i < SAMPLES; ++i) sum[i][j] = multiply_add(sum[i][j], p.windows[i][step], v);
    }
}

// The weights of two steps in one load: bfloat16 is the upper half of a float.
template <bool LOWER, bool UPPER, int SAMPLES, int VECTORS>
CONVLM_INLINE void add_pair(Vector<float> (&sum)[SAMPLES][VECTORS],
                            const PanelProduct<float, bfloat16>& p, int64_t first, int64_t step) {
  typedef uint32_t Word __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
  typedef uint32_t UnalignedWord
      __attribute__((vector_size(CONVLM_VECTOR_BYTES), aligned(2), may_alias));
  const bfloat16* weight = p.weight + step * p.pitch + 2 * first;
#pragma GCC unroll 8
  for (int j = 0; j < VECTORS; ++j) {
    const Word word = *reinterpret_cast<const UnalignedWord*>(weight + 2 * j * kLanes<float>);
    const Vector<float> lower = (Vector<float>)(word << 16);
    const Vector<float> upper = (Vector<float>)(word & 0xffff0000u);
#pragma GCC unroll 4
    for (int i = 0; i < SAMPLES; ++i) {
      if (LOWER) sum[i][j] = multiply_add(sum[i][j], p.windows[i][step], lower);
      if (UPPER) sum[i][j] = multiply_add(sum[i][j], p.windows[i][step + 1], upper);
    }
  }
}

template <int SAMPLES, int VECTORS>
CONVLM_INLINE void add_products(Vector<float> (&sum)[SAMPLES][VECTORS],
                                const PanelProduct<float, bfloat16>& p, int64_t first,
                                int64_t begin, int64_t end) {
  if (begin % 2 == 1) add_pair<false, true>(sum, p, first, begin - 1);
  int64_t step = (begin + 1) / 2 * 2;
  for (; step + 2 <= end; step += 2) add_pair<true, true>(sum, p, first, step);
  if (step < end) add_pair<true, false>(sum, p, first, step);
}

template <class T, class Weight, int SAMPLES, int VECTORS>
void panel_product(const PanelProduct<T, Weight>& panel, int64_t first) {
  constexpr int W = kLanes<T>;
  const T* windows[SAMPLES];  // where the compiler sees that nothing else writes to them
#pragma GCC unroll 4
  for (int i = 0; i < SAMPLES; ++i) windows[i] = panel.windows[i];
  PanelProduct<T, Weight> p = panel;
  p.windows = windows;
  Vector<T> total[SAMPLES][VECTORS] = {};
  for_each_chain(p.outer, p.inner, [&](int64_t begin, int64_t end) {
    Vector<T> sum[SAMPLES][VECTORS] = {};
    add_products(sum, p, first, begin, end);
#pragma GCC unroll 4
    for (int i = 0; i < SAMPLES; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) total[i][j] += sum[i][j];
  });
#pragma GCC unroll 4
  for (int i = 0; i < SAMPLES; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) store(p.sums[i] + first + j * W, total[i][j]);
}

// Eight sums hide the latency of a multiply-add, and leave room for weights in 16 registers.
template <int SAMPLES>
constexpr int kPanelVectors = 8 / SAMPLES;

template <class T, class Weight, int SAMPLES, int... I>
CONVLM_INLINE void panel_products(const PanelProduct<T, Weight>& p, int64_t vectors,
                                  std::integer_sequence<int, I...>) {
  static constexpr void (*table[])(const PanelProduct<T, Weight>&,
                                   int64_t) = {&panel_product<T, Weight, SAMPLES, I + 1>...};
  constexpr int kMost = sizeof...(I);
  for (int64_t v = 0; v < vectors; v += kMost)
    table[smaller(kMost, vectors - v) - 1](p, v * kLanes<T>);
}

template <int SAMPLES, class T, class Weight>
CONVLM_INLINE int64_t panel_of_samples(PanelProduct<T, Weight>& p, int64_t vectors, int64_t count) {
  for (; count >= SAMPLES; count -= SAMPLES) {
    panel_products<T, Weight, SAMPLES>(p, vectors,
                                       std::make_integer_sequence<int, kPanelVectors<SAMPLES>>{});
    p.windows += SAMPLES;
    p.sums += SAMPLES;
  }
  return count;
}

// sums[n][0 .. outputs) = the products of each sample's window; up to a vector more is written.
template <class T, class Weight>
void multiply_panel(PanelProduct<T, Weight> p, int64_t outputs, int64_t samples) {
  const int64_t vectors = divide_up(outputs, kLanes<T>);
  samples = panel_of_samples<4>(p, vectors, samples);
  samples = panel_of_samples<2>(p, vectors, samples);
  panel_of_samples<1>(p, vectors, samples);
}

// Each output reads one channel: the weights are vectors, and so are the windows.
template <class T, class Weight>
void multiply_depthwise(const T* window, const Weight* weight, int64_t taps, int64_t channels,
                        int64_t weight_pitch, int64_t window_pitch, T* sums) {
  constexpr int W = kLanes<T>;
  for (int64_t c = 0; c < channels; c += W) {
    Vector<T> total{};
    for_each_chain(1, taps, [&](int64_t begin, int64_t end) {
      Vector<T> sum{};
      for (int64_t tap = begin; tap < end; ++tap)
        sum = multiply_add(sum, load(weight + tap * weight_pitch + c),
                           load(window + tap * window_pitch + c));
      total += sum;
    });
    store(sums + c, total);
  }
}
