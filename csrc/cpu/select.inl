// Which of several equivalent kernels a geometry gets. The number of threads has no say, and the
// batch only where it is summed over, or where both kernels give the same bits: they must not show
// in them.

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

// Few rows per channel leave nothing to block over; past one chain the sums need their tile.
inline bool has_few_channels(int64_t rows, int64_t channels, int64_t taps) {
  return (channels == 1 ? rows <= 4 : rows == 1 && channels <= 4) &&
         channels * taps <= kGradWeightChain;
}

// Short rows of many groups of few channels: groups fill vectors, positions would not. Measured.
// A sum is one chain.
template <class S>
bool is_by_groups(int64_t groups, int64_t rows, int64_t channels, int64_t taps, int64_t outputs,
                  int64_t length) {
  constexpr int W = kLanes<Compute<S>>;
  const bool few = (rows * channels <= 16 && channels * taps <= kChain) ||
                   has_few_channels(rows, channels, taps);
  return few && 2 * groups >= W && (8 * outputs + length) * divide_up(groups, W) <= 32 * groups;
}
template <template <class> class Problem, class S>
bool is_by_groups(const Problem<S>& p) {
  return is_by_groups<S>(p.groups, p.rows, p.channels, p.taps, p.outputs, p.length);
}

// grad_input of either, with a stride.
template <class S>
bool is_by_groups(const Conv1dGeometry& g) {
  return g.batch > 0 && g.length > 0 && g.stride > 1 &&
         is_by_groups<S>(g.groups, g.in_channels_per_group(), g.out_channels_per_group(),
                         g.kernel_size, divide_up(g.length, g.stride), g.length);
}
inline bool is_interleaved(const Conv1dGeometry& g) {
  return g.batch > 0 && g.stride > 1 && g.length >= g.stride && g.in_channels_per_group() == 1 &&
         has_few_channels(1, g.out_channels_per_group(), g.kernel_size);
}

// ---- what the direct kernels cost ----

// In multiply-adds of vectors, for one group and, if not said otherwise, one sample. The prices of
// copies, tiles and sums were fitted to the times of 14,000 random problems.

// Of one channel: a stream to begin, and its vectors to copy. Streams of nothing but padding are
// left out.
template <class S>
int64_t staging_cost(const Correlation<S>& p, const Staging& plan, int64_t start, int64_t vector) {
  return smaller(plan.streams, taps_inside(p, 0, p.outputs).count()) *
         (start + vector * divide_up(plan.width, kLanes<Compute<S>>));
}

// The arrays of a plan that is only looked at.
template <class S>
Staging staging_of(const Correlation<S>& p) {
  Staging plan;
  plan.stream_start = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  plan.tap_start = plan.stream_start + p.taps;
  return plan;
}

// Of one channel and row: products in strips that leave out the taps of which all of them read
// nothing but padding: on average `more` outputs than read a part of the input are multiplied.
template <class S>
int64_t products_in_strips(const Correlation<S>& p, int64_t more) {
  int64_t products = 0;
  for (int64_t j = 0; j < p.taps; ++j) {
    const int64_t inside = outputs_inside(p, j);
    if (inside > 0) products += smaller(p.outputs, inside + more);
  }
  return products;
}

// Of one of `classes` of positions that go together.
template <class S>
int64_t cost_by_positions(const Correlation<S>& p, int64_t classes = 1) {
  using T = Operand<S>;
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kStream = 31, kCopy = 4, kGather = 11, kTile = 100;
  const int64_t output = p.out_step == 1 ? 4 : 10;  // some are not next to each other
  const int64_t vectors = divide_up(p.outputs, W);
  const int64_t products = larger(taps_inside(p, 0, p.outputs).count(),
                                  divide_up(products_in_strips(p, kMaxVectors * W / 2), W)) *
                           (p.rows == 1 ? 2 : 1);  // a lone row waits for its sums
  Staging staging = staging_of(p);
  const int64_t strips = plan_tile<T>(p, p.taps, kMaxVectors, staging);
  const int64_t tiles = divide_up(vectors, strips * kMaxVectors);
  const int64_t copying = staging_cost(p, staging, kStream, p.in_step == 1 ? kCopy : kGather);
  return p.rows * divide_up(p.channels, kDepth<T>) * products +
         tiles * p.channels * copying / classes + output * p.rows * vectors +
         kTile * divide_up(p.rows, kMaxRows) * divide_up(vectors, kMaxVectors);
}

template <class S>
int64_t cost_by_rows(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kStream = 15, kCopy = 6, kOutput = 11, kTile = 64;
  const int64_t vectors = divide_up(p.rows, W);
  int64_t copying = 0;
  if (!std::is_same_v<S, Compute<S>> || !reads_no_padding(p)) {
    Staging staging = staging_of(p);
    plan_for_scalars(staging, p.outputs, p.in_step, p.tap_offset, p.taps, W);
    copying = staging_cost(p, staging, kStream, kCopy);
  }
  return vectors * divide_up(p.channels, kDepth<Operand<S>>) * products_in_strips(p, kMaxRows / 2) +
         p.channels * copying + kOutput * vectors * p.outputs +
         kTile * divide_up(p.outputs, kMaxRows) * divide_up(vectors, kMaxVectors);
}

constexpr int64_t kMostJoinedVectors = 8;  // longer samples fill their vectors alone

// Of `batch` samples.
template <class S>
int64_t cost_of_joined(const Correlation<S>& p, int64_t batch) {
  constexpr int W = kLanes<Compute<S>>;
  if (p.outputs > kMostJoinedVectors * W) return kNever;
  constexpr int64_t kPiece = 3, kCopy = 5, kStream = 10, kGather = 18, kOutput = 3, kSum = 8;
  const int64_t vectors = divide_up(batch * p.outputs, W);
  int64_t gathering = 0;
  if (p.in_step * p.in_position > 1) {
    Staging staging = staging_of(p);
    plan_for_vectors(staging, p.outputs, p.in_step, p.tap_offset, p.taps, W);
    gathering = staging_cost(p, staging, kStream, kGather);
  }
  return p.taps * (p.rows * divide_up(p.channels, kDepth<Operand<S>>) * vectors +
                   p.channels * (kPiece * batch + kCopy * vectors)) +
         batch * p.channels * gathering + p.rows * (kOutput * batch + kSum * vectors);
}

// Of these the batch may choose: their bits are the same.
template <class S>
int64_t cost_by_rows_or_joined(const Correlation<S>& p) {
  return smaller(cost_by_rows(p), cost_of_joined(p, kUsualBatch) / kUsualBatch);
}

// A sample's share of packing weights.
template <class S>
int64_t packing_cost(const Correlation<S>& p) {
  constexpr int64_t kElement = 4, kFewTurned = 6;  // of one channel and row
  const int64_t taps = taps_inside(p, 0, p.outputs).count();
  const bool all = natural_weight(p) && 2 * taps > p.taps;
  const int64_t cost = all                  ? p.taps
                       : is_turned(p, taps) ? larger(taps, kFewTurned)
                                            : kElement * taps;
  return cost * p.rows * p.channels / kUsualBatch;
}

// Where inputs are multiplied by taps first: of a correlation, or of all classes of positions.
template <class S>
int64_t cost_of_taps_first(const Correlation<S>* parts, int64_t part_count) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kProduct = 5, kSample = 2, kCopy = 3, kBlock = 3;
  constexpr int64_t kRow = 15, kAddend = 30;
  const Correlation<S>& p = parts[0];
  if (p.length == 0 || p.in_step != 1) return kNever;
  if (part_count == 1 && p.taps == 1 && p.rows > 2) return kNever;
  const TapReach reach = tap_reach(parts, part_count);
  if (reach.count() == 0) return kNever;
  const int64_t columns = p.rows * reach.count(), blocks = divide_up(columns, kMaxRows);
  const bool is_long = p.length > kTapPositions;
  const int64_t output = p.out_step == 1 ? 6 : 18;  // of classes: put in their turn
  const int64_t adding = is_long ? 10 : 3;  // to outputs, or to sums that wait for the next inputs
  const int64_t vectors =
      is_long ? kUsualBatch * divide_up(p.length, W) : divide_up(kUsualBatch * p.length, W);
  // Classes of many taps have more weights and products than stay close.
  const int64_t products = is_long && p.out_step > 1 ? 5 * columns / 8 : columns / 2;
  int64_t of_all =
      vectors * (divide_up(p.channels, kDepth<Operand<S>>) * (products + kBlock * blocks) +
                 kCopy * p.channels + kProduct * columns);
  const int64_t packing = reach.count() >= kFewestTapsInPlace ? 1 : 4;
  if (!weight_may_stay<Operand<S>>(p, reach)) of_all += packing * p.channels * columns;
  int64_t cost = of_all / kUsualBatch + kRow * p.rows + (is_long ? 0 : kSample * p.channels);
  for (int64_t i = 0; i < part_count; ++i)
    cost += divide_up(parts[i].outputs, W) *
            (taps_inside(parts[i], 0, parts[i].outputs).count() * (adding * p.rows + kAddend) +
             output * p.rows);
  return cost;
}

constexpr int64_t kMostTogether = 16;  // the sums of a tile stay in the L1 cache

// How all classes of positions of one grad_input go together: by taps, windows or positions. Each
// goes on its own for `rows`.
template <class S>
Kernel kernel_of_classes(const Correlation<S>* parts, int64_t part_count) {
  // An output, and one more for what nothing but a pass of its own clears.
  constexpr int64_t kOutput = 1;
  int64_t classes = 0, weights = 0;
  for (int64_t i = 0; i < part_count; ++i) classes += of_taps_inside(parts[i]).taps > 0;
  int64_t always = 0, apart = 0, together = classes > 0 && part_count <= kMostTogether ? 0 : kNever;
  for (int64_t i = 0; i < part_count; ++i) {
    const Correlation<S> part = of_taps_inside(parts[i]);
    weights += part.rows * part.products();
    const int64_t storing = kOutput * part.rows * part.outputs;
    always += storing + packing_cost(part);
    apart +=
        part.taps == 0 ? storing : smaller(cost_by_positions(part), cost_by_rows_or_joined(part));
    if (part.taps > 0) together += cost_by_positions(part, classes);
  }
  const int64_t taps = cost_of_taps_first(parts, part_count);
  const int64_t others = always + smaller(apart, together);
  if (windows_pay<S>(weights, cost_into_windows(parts, part_count), smaller(taps, others)))
    return Kernel::windows;
  if (taps < others) return Kernel::taps;
  return together < apart ? Kernel::positions : Kernel::rows;
}

template <class S>
Kernel direct_correlation_kernel(const Correlation<S>& p) {
  if (p.out_step == 1 && (is_by_groups(p) || has_few_channels(p.rows, p.channels, p.taps)))
    return Kernel::depthwise;
  const int64_t positions = cost_by_positions(p), others = cost_by_rows_or_joined(p);
  if (p.out_step == 1) {
    const int64_t packed = smaller(positions, others) + packing_cost(p);
    const int64_t taps = cost_of_taps_first(&p, 1);
    const int64_t windows = smaller(cost_of_windows(p), cost_into_windows(&p, 1));
    if (windows_pay<S>(p.rows * p.products(), windows, smaller(taps, packed)))
      return Kernel::windows;
    if (taps < packed) return Kernel::taps;
  }
  // Long rows that are read in place come from far; positions stage them in the order of memory.
  if (8 * positions <= 9 * others) return Kernel::positions;
  const bool joined = 8 * cost_of_joined(p, p.batch) <= 9 * p.batch * cost_by_rows(p);
  return joined ? Kernel::joined : Kernel::rows;
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

// All classes of positions of one grad_input, or a correlation.
template <class S>
void correlate_together(const Correlation<S>* parts, int64_t part_count, Kernel kernel) {
  // A lone channel has no other to share a pair with.
  const bool lone = parts[0].channels == 1;
  switch (kernel) {
    case Kernel::windows:
      return correlate_into_windows(parts, part_count);
    case Kernel::taps:
      return lone ? correlate_by_taps<Compute<S>>(parts, part_count)
                  : correlate_by_taps<Operand<S>>(parts, part_count);
    default:
      return lone ? correlate_vectors_of_positions<Compute<S>>(parts, part_count)
                  : correlate_vectors_of_positions<Operand<S>>(parts, part_count);
  }
}

template <class S>
void correlate_directly(const Correlation<S>& p, Kernel kernel) {
  const bool lone = p.channels == 1;
  switch (kernel) {
    case Kernel::depthwise:
      return is_by_groups(p) ? correlate_groups(&p, 1, p.out) : correlate_depthwise(p);
    case Kernel::windows:
      if (cost_of_windows(p) <= cost_into_windows(&p, 1)) return correlate_windows(p);
      return correlate_together(&p, 1, kernel);
    case Kernel::taps:
    case Kernel::positions:
      return correlate_together(&p, 1, kernel);
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
