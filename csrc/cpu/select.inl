// Which of several equivalent kernels a geometry gets. The batch and the number of threads have no
// say: they must not show in the bits.

// Shorter rows would leave most of a vector of tiles empty.
constexpr int64_t kFewestFastOutputs = 64;

// Both orders round the rows or the positions up to whole vectors: take the one that wastes less.
// Vectors of positions need no turning of the output, so they win ties and near-ties.
template <class S>
void correlate_directly(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  // Few rows per channel leave nothing to block over. Past one chain the sums need their tile, and
  // taps too far apart would stage more than they read at the edges.
  const int64_t spread = p.tap_offset[p.taps - 1] - p.tap_offset[0];
  if (p.channels == 1 && p.rows <= 2 && p.in_step == 1 && p.in_position == 1 && p.out_step == 1 &&
      p.taps <= kChain && larger(spread, -spread) <= 1024 * p.taps)
    return correlate_depthwise(p);
  const int64_t by_positions = divide_up(p.outputs, W) * p.rows;
  const int64_t by_rows = divide_up(p.rows, W) * p.outputs;
  if (by_positions * 8 <= by_rows * 9)
    correlate_vectors_of_positions(p);
  else
    correlate_vectors_of_rows(p);
}

// What fast filtering costs per tile, in multiply-adds: the products, and the making of components
// and outputs, whose prices were measured.
template <class F>
bool fast_filter_pays(int64_t outputs, int64_t taps, int64_t dilation, int64_t channels,
                      int64_t rows) {
  const FastTiling<F> t(outputs, taps, dilation);
  const int64_t tile =
      t.slots * channels * rows + 12 * t.slots * channels + 25 * F::kOutputs * rows;
  return 20 * t.tiles * tile < 19 * outputs * taps * channels * rows;
}

// The error of F(4, 3) shows in float32, not in what a 16-bit type keeps; float64 is left to the
// direct sum, whose error is what one asks for with it.
template <class S>
void correlate(const Correlation<S>& p) {
  if (p.batch == 0 || p.outputs <= 0) return;
  const int64_t spacing = p.taps > 1 ? p.tap_offset[1] - p.tap_offset[0] : 0;
  const int64_t dilation = larger(spacing, -spacing);
  if constexpr (sizeof(S) < sizeof(double)) {
    if (dilation > 0 && p.in_step == 1 && p.out_step == 1 && p.outputs >= kFewestFastOutputs) {
      if (sizeof(S) == 2 &&
          fast_filter_pays<FastFilter<4>>(p.outputs, p.taps, dilation, p.channels, p.rows))
        return correlate_fast<FastFilter<4>>(p);
      if (fast_filter_pays<FastFilter<2>>(p.outputs, p.taps, dilation, p.channels, p.rows))
        return correlate_fast<FastFilter<2>>(p);
    }
  }
  correlate_directly(p);
}

template <class S>
void weight_gradient(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  if (p.batch == 0) {
    for (int64_t i = 0; i < p.groups * p.rows * p.products(); ++i)
      from_compute(Compute<S>(0), p.grad_weight[i]);
    if (p.grad_bias != nullptr)
      for (int64_t i = 0; i < p.groups * p.rows; ++i) from_compute(Compute<S>(0), p.grad_bias[i]);
    return;
  }
  // A vector of positions loads twice for what a scalar loads once, and at the end of each sample
  // its lanes must be added up.
  const int64_t by_positions = p.rows * (2 * divide_up(p.outputs, W) + W);
  const int64_t by_rows = divide_up(p.rows, W) * p.outputs;
  if (by_positions < by_rows)
    grad_weight_vectors_of_positions(p);
  else
    grad_weight_vectors_of_rows(p);
}
