// Which of several equivalent kernels a geometry gets. The number of threads has no say, and the
// batch only where it is summed over, or where both kernels give the same bits: they must not show
// in them.

// Shorter rows would leave most of a vector of tiles empty.
constexpr int64_t kFewestFastOutputs = 64;

// float64 is left to the direct sum, whose error is what one asks for with it. Dot products of
// pairs halve the work already, which is the most that a fast filter, in float32, would save.
template <class S>
constexpr bool kMayFilter = sizeof(S) < sizeof(double) && kDepth<Operand<S>> == 1;

// Samples whose outputs are less than a strip of the core, or leave an eighth of the lanes of their
// vectors of positions empty. Of fewer than half a vector, the copying alone would cost more than
// is saved.
template <class S>
bool is_short(int64_t outputs) {
  constexpr int W = kLanes<Compute<S>>;
  return 2 * outputs >= W &&
         (outputs < kMaxVectors * W || 8 * divide_up(outputs, W) * W > 9 * outputs);
}
constexpr int64_t kFewestJoinedRows = 8;

// What each product of all samples costs where they are joined, in multiply-adds of vectors. A copy
// of a vector costs as much as some of them, and staging a phase of a strided row, whose taps share
// it, as many more. Both were measured.
inline int64_t joined_cost(int64_t batch, int64_t vectors, int64_t rows, int64_t step,
                           int64_t taps) {
  constexpr int64_t kCopy = 4, kPhase = 32;
  return vectors * (rows + kCopy) + (step == 1 ? 0 : batch * kPhase * smaller(step, taps) / taps);
}

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

// Products of one channel and row for one sample, where outputs go in strips that leave out the
// taps of which all of them read nothing but padding: on average `more` outputs than read a part of
// the input are multiplied by a tap.
template <class S>
int64_t products_in_strips(const Correlation<S>& p, int64_t more) {
  int64_t products = 0;
  for (int64_t j = 0; j < p.taps; ++j) {
    const int64_t inside =
        smaller(p.outputs, p.length - p.tap_offset[j]) - larger(0, -p.tap_offset[j]);
    if (inside > 0) products += smaller(p.outputs, inside + more);
  }
  return products;
}

// Whether to multiply by taps first, instead of as `direct` does. Costs of one sample, in
// multiply-adds; the constants were fitted to the times of 1,900 random problems.
template <class S>
bool taps_first_pays(const Correlation<S>& p, Kernel direct) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kPacking = 7;  // of a weight, shared by a few samples
  if (p.in_step != 1 || (p.taps == 1 && p.length >= p.outputs)) return false;
  const TapRange taps = taps_inside(p, 0, p.outputs);
  const int64_t columns = p.rows * taps.count();
  const int64_t packing = kPacking * p.channels * columns;
  // Few columns wait for each other's sums; many read their inputs from copies.
  int64_t taps_first = p.length * (p.channels + 4) * (columns + larger(1, columns / kMaxRows));
  if (columns > kMostColumnsInPlace || p.length < kTapPositions)
    taps_first += p.channels * p.length;
  if (!is_by_channel(p, taps)) taps_first += packing;

  const int64_t products =
      direct == Kernel::positions
          ? products_in_strips(p, kMaxVectors * W * 3 / 2) * (4 * p.rows + 5) / 4
          : products_in_strips(p, kMaxRows) * divide_up(p.rows, W) * W;
  const int64_t spread = p.tap_offset[p.taps - 1] - p.tap_offset[0];
  const int64_t staged = smaller(p.outputs + larger(spread, -spread), taps.count() * p.outputs);
  return taps_first < products * p.channels / kDepth<Operand<S>> + staged * p.channels + packing;
}

// Few rows per channel leave nothing to block over; past one chain the sums need their tile.
inline bool has_few_channels(int64_t rows, int64_t channels, int64_t taps) {
  return (channels == 1 ? rows <= 4 : rows == 1 && channels <= 4) &&
         channels * taps <= kGradWeightChain;
}

// grad_input of such layers with a stride.
inline bool is_interleaved(const Conv1dGeometry& g) {
  return g.batch > 0 && g.stride > 1 && g.length >= g.stride && g.in_channels_per_group() == 1 &&
         has_few_channels(1, g.out_channels_per_group(), g.kernel_size);
}

template <class S>
Kernel direct_correlation_kernel(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  if (has_few_channels(p.rows, p.channels, p.taps) && p.out_step == 1) return Kernel::depthwise;
  // All orders round the rows or the positions up to whole vectors: take the one that wastes least.
  // Vectors of positions need no turning of the output, so they win ties and near-ties.
  const int64_t by_positions = divide_up(p.outputs, W) * p.rows;
  const int64_t by_rows = divide_up(p.rows, W) * p.outputs;
  const bool is_joined = is_short<S>(p.outputs) && p.rows >= kFewestJoinedRows;
  const Kernel direct =
      !is_joined && by_positions * 8 <= by_rows * 9 ? Kernel::positions : Kernel::rows;
  if (taps_first_pays(p, direct)) return Kernel::taps;
  if (!is_joined) return direct;
  // These two add up in the same order, and rows leave out the products of most padding.
  const int64_t joined = joined_cost(p.batch, divide_up(p.batch * p.outputs, W), p.rows,
                                     p.in_step * p.in_position, p.taps);
  const int64_t all = p.taps * p.outputs;
  const int64_t taken = smaller(all, products_inside(p) + p.taps * kMaxRows / 2);
  return 8 * joined * all <= 9 * p.batch * by_rows * taken ? Kernel::joined : Kernel::rows;
}

// F(4, 3) errs a few times as much as a direct sum, and by a share of inputs that an output does
// not read, however large these are.
template <class S>
bool exact_enough_for_four(const Correlation<S>& p) {
  return sizeof(S) == 4 && p.precision == Precision::tf32;
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
void correlate_directly(const Correlation<S>& p, Kernel kernel) {
  // A lone channel has no other to share a pair with.
  const bool lone = p.channels == 1;
  switch (kernel) {
    case Kernel::depthwise:
      return correlate_depthwise(p);
    case Kernel::taps:
      return correlate_by_taps(p);
    case Kernel::positions:
      return lone ? correlate_vectors_of_positions<Compute<S>>(&p, 1)
                  : correlate_vectors_of_positions<Operand<S>>(&p, 1);
    case Kernel::joined:
      return lone ? correlate_joined<Compute<S>>(p) : correlate_joined<Operand<S>>(p);
    default:
      return lone ? correlate_vectors_of_rows<Compute<S>>(p)
                  : correlate_vectors_of_rows<Operand<S>>(p);
  }
}

template <class S>
void correlate_directly(const Correlation<S>& p) {
  correlate_directly(p, direct_correlation_kernel(p));
}

template <class S>
void correlate(const Correlation<S>& p) {
  if (p.batch == 0 || p.outputs <= 0) return;
  const Kernel kernel = correlation_kernel(p);
  if constexpr (kMayFilter<S>) {
    if (kernel == Kernel::fast_filter_2) return correlate_fast<FastFilter<2>>(p);
    if (kernel == Kernel::fast_filter_4) return correlate_fast<FastFilter<4>>(p);
  }
  correlate_directly(p, kernel);
}

// Classes of positions of one grad_input, which differ in taps and outputs alone.
template <class S>
void correlate(const Correlation<S>* parts, int64_t count) {
  bool together = count > 1 && parts[0].batch > 0 && parts[0].channels > 1;
  for (int64_t i = 0; i < count; ++i) together &= correlation_kernel(parts[i]) == Kernel::positions;
  if (together) return correlate_vectors_of_positions<Operand<S>>(parts, count);
  for (int64_t i = 0; i < count; ++i) correlate(parts[i]);
}

// Whether grad_input is better off with the products of its outputs joined than with the
// correlations of its classes of positions: by the multiply-adds of vectors that a sample takes.
template <class S>
bool joining_pays(const Correlation<S>* parts, int64_t count) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kAddingCost = 8;  // of a vector of products to the positions
  // More taps at a step of one are read often enough for copies to pay.
  constexpr int64_t kMostTaps = 4;
  const Correlation<S>& p = parts[0];
  if (p.channels == 1) return false;
  if (count == 1 && p.taps > kMostTaps && correlation_kernel(p) == Kernel::taps) return false;
  int64_t taps = 0, correlations = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Kernel kernel = parts[i].taps > 0 ? correlation_kernel(parts[i]) : Kernel::rows;
    if (kernel == Kernel::fast_filter_2 || kernel == Kernel::fast_filter_4) return false;
    taps += parts[i].taps;
    correlations +=
        smaller(divide_up(parts[i].outputs, W) * p.rows, divide_up(p.rows, W) * parts[i].outputs) *
        parts[i].taps * p.channels;
  }
  return p.rows * taps >= kFewestJoinedRows &&
         p.length * p.rows * taps * (p.channels + kAddingCost) < W * correlations;
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
  if (2 * p.outputs >= W && p.outputs <= 8 * W && p.rows >= kFewestJoinedRows) {
    // Joined, lanes are added up once for all samples, and nothing is turned, but the tiles of dot
    // products fill only the registers of AVX-512.
    constexpr int64_t kEighths = CONVLM_VECTOR_BYTES == 64 ? 9 : 8;
    const int64_t joined = joined_cost(p.batch, divide_up(p.batch * p.outputs, W * D), p.rows,
                                       p.stride * p.x_position, p.taps) +
                           3 * p.rows;
    if (8 * joined <= kEighths * p.batch * smaller(by_rows, by_positions)) return Kernel::joined;
  }
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
  switch (direct_grad_weight_kernel(p)) {
    case Kernel::positions:
      return grad_weight_vectors_of_positions(p);
    case Kernel::joined:
      return grad_weight_joined(p);
    default:
      return grad_weight_vectors_of_rows(p);
  }
}

template <class S>
void weight_gradient_by_kernel(const WeightGradient<S>& p) {
  if constexpr (kMayFilter<S>) {
    const Kernel kernel = grad_weight_kernel(p);
    if (kernel == Kernel::fast_filter_2) return grad_weight_fast<FastFilter<2>>(p);
    if (kernel == Kernel::fast_filter_4) return grad_weight_fast<FastFilter<4>>(p);
  }
  weight_gradient_directly(p);
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
  WeightGradient<S> inside = of_taps_inside(p);
  const bool trimmed = inside.taps < p.taps;
  if (trimmed)
    inside.grad_weight =
        static_cast<S*>(scratch(Slot::inside, sizeof(S) * p.groups * p.rows * inside.products()));
  weight_gradient_by_kernel(inside);
  if (trimmed) spread_taps(p, inside);
}

// ---- both gradients ----

// Only what is read in place shares it.
template <class S>
bool gradients_share_a_pass(const Correlation<S>& p, const WeightGradient<S>& q) {
  const int64_t spread = p.tap_offset[0] - p.tap_offset[p.taps - 1];
  return p.batch > 0 && p.rows == 1 && p.channels == 1 && p.taps <= kMaxSharedTaps &&
         q.stride == 1 && p.in_position == 1 && q.x_position == 1 &&
         p.length - spread > (SlidingInput::kFewestInPlace + 1) * kLanes<Compute<S>> &&
         correlation_kernel(p) == Kernel::depthwise && grad_weight_kernel(q) == Kernel::positions;
}
