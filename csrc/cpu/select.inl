// Which of several equivalent kernels a geometry gets. The number of threads has no say, and the
// batch only where it is summed over: they must not show in the bits.

// Shorter rows would leave most of a vector of tiles empty.
constexpr int64_t kFewestFastOutputs = 64;

// float64 is left to the direct sum, whose error is what one asks for with it. Dot products of
// pairs halve the work already, which is the most that a fast filter, in float32, would save.
template <class S>
constexpr bool kMayFilter = sizeof(S) < sizeof(double) && kDepth<Operand<S>> == 1;

// ---- forward and grad_input ----

// What a fast filter costs, in multiply-adds: the products, and the making of components and
// outputs, whose prices were measured. Copies make them dearer.
template <class F, class S>
int64_t fast_correlation_cost(const Correlation<S>& p, int64_t dilation) {
  using T = Compute<S>;
  const FastTiling<F> t(p.outputs, p.taps, dilation);
  const bool copies =
      Stretches<F>(t, kFastTiles, kLanes<T>).whole_blocks && !cut_in_registers<T>(dilation);
  const int64_t transforms = 6 * t.slots * p.channels + 14 * F::kOutputs * p.rows;
  return t.tiles * (t.slots * p.channels * p.rows + (copies ? 3 : 1) * transforms) -
         slots_of_padding(p, t) * p.channels * p.rows;
}

// What the direct sum costs, with its staging and storing.
template <class S>
int64_t direct_correlation_cost(const Correlation<S>& p) {
  return products_inside(p) * p.channels * p.rows + p.outputs * (3 * p.channels + 6 * p.rows);
}

template <class S>
Kernel direct_correlation_kernel(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  // Few rows per channel leave nothing to block over. Past one chain the sums need their tile, and
  // taps too far apart would stage more than they read at the edges.
  const int64_t spread = p.tap_offset[p.taps - 1] - p.tap_offset[0];
  if (p.channels == 1 && p.rows <= 2 && p.in_step == 1 && p.in_position == 1 && p.out_step == 1 &&
      p.taps <= kGradWeightChain && larger(spread, -spread) <= 1024 * p.taps)
    return Kernel::depthwise;
  // Both orders round the rows or the positions up to whole vectors: take the one that wastes less.
  // Vectors of positions need no turning of the output, so they win ties and near-ties.
  const int64_t by_positions = divide_up(p.outputs, W) * p.rows;
  const int64_t by_rows = divide_up(p.rows, W) * p.outputs;
  return by_positions * 8 <= by_rows * 9 ? Kernel::positions : Kernel::rows;
}

// The error of F(4, 3), a few times that of a direct sum, shows in float32 where that must be
// exact, not in what TF32 or a 16-bit type keeps.
template <class S>
bool exact_enough_for_four(const Correlation<S>& p) {
  return sizeof(S) == 2 || p.precision == Precision::tf32;
}

template <class S>
Kernel correlation_kernel(const Correlation<S>& p) {
  const int64_t spacing = p.taps > 1 ? p.tap_offset[1] - p.tap_offset[0] : 0;
  const int64_t dilation = larger(spacing, -spacing);
  if (kMayFilter<S> && dilation > 0 && p.in_step == 1 && p.out_step == 1 &&
      p.outputs >= kFewestFastOutputs) {
    const int64_t two = fast_correlation_cost<FastFilter<2>>(p, dilation);
    const int64_t four =
        exact_enough_for_four(p) ? fast_correlation_cost<FastFilter<4>>(p, dilation) : two;
    // A twentieth of the direct sum's cost is not worth the change.
    if (20 * smaller(two, four) < 19 * direct_correlation_cost(p))
      return four < two ? Kernel::fast_filter_4 : Kernel::fast_filter_2;
  }
  return direct_correlation_kernel(p);
}

template <class S>
void correlate_directly(const Correlation<S>& p) {
  // A lone channel has no other to share a pair with.
  const bool lone = p.channels == 1;
  switch (direct_correlation_kernel(p)) {
    case Kernel::depthwise:
      return correlate_depthwise(p);
    case Kernel::positions:
      return lone ? correlate_vectors_of_positions<Compute<S>>(&p, 1)
                  : correlate_vectors_of_positions<Operand<S>>(&p, 1);
    default:
      return lone ? correlate_vectors_of_rows<Compute<S>>(p)
                  : correlate_vectors_of_rows<Operand<S>>(p);
  }
}

template <class S>
void correlate(const Correlation<S>& p) {
  if (p.batch == 0 || p.outputs <= 0) return;
  if constexpr (kMayFilter<S>) {
    const Kernel kernel = correlation_kernel(p);
    if (kernel == Kernel::fast_filter_2) return correlate_fast<FastFilter<2>>(p);
    if (kernel == Kernel::fast_filter_4) return correlate_fast<FastFilter<4>>(p);
  }
  correlate_directly(p);
}

// Classes of positions of one grad_input, which differ in taps and outputs alone.
template <class S>
void correlate(const Correlation<S>* parts, int64_t count) {
  bool together = count > 1 && parts[0].batch > 0 && parts[0].channels > 1;
  for (int64_t i = 0; i < count; ++i) together &= correlation_kernel(parts[i]) == Kernel::positions;
  if (together) return correlate_vectors_of_positions<Operand<S>>(parts, count);
  for (int64_t i = 0; i < count; ++i) correlate(parts[i]);
}

// ---- grad_weight ----

// F(4, 3) errs less than oneDNN's sums of so many positions, but more than those of many taps.
constexpr int64_t kFewestPositionsOfFour = 1024;
constexpr int64_t kMostTapsOfFour = 8;

template <class S>
bool exact_enough_for_four(const WeightGradient<S>& p) {
  return sizeof(S) == 2 || p.precision == Precision::tf32 ||
         (p.taps <= kMostTapsOfFour && p.batch * p.outputs >= kFewestPositionsOfFour);
}

template <class F, class S>
bool fast_grad_weight_pays(const WeightGradient<S>& p, int64_t dilation) {
  const FastTiling<F> t(p.outputs, p.taps, dilation);
  const int64_t tile = t.slots * p.channels * p.rows + 5 * t.slots * p.channels +
                       12 * (F::kComponents + F::kOutputs) * p.rows;
  return t.tiles * tile < p.outputs * p.taps * p.channels * p.rows;
}

template <class S>
Kernel direct_grad_weight_kernel(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  // A vector of positions loads twice for what a scalar loads once, and at the end of each sample
  // its lanes must be added up.
  constexpr int D = kDepth<Operand<S>>;
  const int64_t by_positions = p.rows * (2 * divide_up(p.outputs, W * D) + W);
  const int64_t by_rows = divide_up(p.rows, W) * divide_up(p.outputs, D);
  return by_positions < by_rows ? Kernel::positions : Kernel::rows;
}

template <class S>
Kernel grad_weight_kernel(const WeightGradient<S>& p) {
  const int64_t dilation = p.taps > 1 ? p.tap_offset[1] - p.tap_offset[0] : 0;
  if (kMayFilter<S> && dilation > 0 && p.stride == 1 && p.outputs >= kFewestFastOutputs) {
    if (exact_enough_for_four(p) && fast_grad_weight_pays<FastFilter<4>>(p, dilation))
      return Kernel::fast_filter_4;
    if (fast_grad_weight_pays<FastFilter<2>>(p, dilation)) return Kernel::fast_filter_2;
  }
  return direct_grad_weight_kernel(p);
}

template <class S>
void weight_gradient_directly(const WeightGradient<S>& p) {
  if (direct_grad_weight_kernel(p) == Kernel::positions)
    grad_weight_vectors_of_positions(p);
  else
    grad_weight_vectors_of_rows(p);
}

template <class S>
void weight_gradient(const WeightGradient<S>& p) {
  if (p.batch == 0) {
    for (int64_t i = 0; i < p.groups * p.rows * p.products(); ++i)
      from_compute(Compute<S>(0), p.grad_weight[i]);
    if (p.grad_bias != nullptr)
      for (int64_t i = 0; i < p.groups * p.rows; ++i) from_compute(Compute<S>(0), p.grad_bias[i]);
    return;
  }
  if constexpr (kMayFilter<S>) {
    const Kernel kernel = grad_weight_kernel(p);
    if (kernel == Kernel::fast_filter_2) return grad_weight_fast<FastFilter<2>>(p);
    if (kernel == Kernel::fast_filter_4) return grad_weight_fast<FastFilter<4>>(p);
  }
  weight_gradient_directly(p);
}
