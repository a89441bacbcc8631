// What the kernels of windows cost, for one sample of `kUsualBatch`, in multiply-adds of vectors.
// Fitted to the times of 30,000 random problems.

// To lay out what one sample's outputs read: inputs that are next to each other are copied in
// vectors.
template <class S>
int64_t cost_to_stage(const Windows<S>& in) {
  constexpr int64_t kTurned = 1, kChannel = 8, kVector = 4, kApart = 13, kQuarters = 3;
  const int64_t windows = in.outputs * in.channels;
  if (windows_are_turned(in.taps, in.outputs, in.in_step * in.in_position))
    return kTurned * windows;
  return windows * (in.lie_together() ? kChannel + kVector * divide_up(in.taps, kLanes<Compute<S>>)
                                      : kApart + kQuarters * in.taps / 4);
}

// Outputs of one sample that are few: more would gain little, and lose the bits of a step.
constexpr int64_t kMostWindows = 16;

// Dot products of windows and weights, which must lie alike.
template <class S>
int64_t cost_of_windows(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kTwelfths = kDepth<Operand<S>> > 1 ? 6 : 5;  // of those, inputs are converted
  constexpr int64_t kRow = 16, kSum = 16, kTile = 70, kBlock = 189;
  constexpr int64_t kVector = CONVLM_VECTOR_BYTES == 64 ? 2 : 1;  // as many bytes to read again
  if (!natural_weight(p) || p.products() < W || p.outputs > kMostWindows) return kNever;
  const int64_t vectors = divide_up(p.products(), W), positions = kUsualBatch * p.outputs;
  const int64_t blocks = divide_up(positions, kDotRows);
  const Windows<S> in = windows_of(p, 0);
  return (p.rows * (vectors * (kTwelfths * positions / 12 + kVector * blocks) + kSum * positions) +
          (kRow * p.rows + kBlock * divide_up(p.rows, W) + kTile) * blocks) /
             kUsualBatch +
         (in.in_place() ? 0 : cost_to_stage(in));
}

// Sums of the weight's rows, for a correlation or for all classes of positions.
template <class S>
int64_t cost_into_windows(const Correlation<S>* parts, int64_t part_count) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kQuarters = 3, kVector = 3, kChainSum = 3, kOutput = 3, kAddend = 1;
  const Correlation<S>& p = parts[0];
  if (p.length == 0 || p.length > kMostWindowInputs || p.in_step != 1 || p.weight_tap != 1 ||
      p.bias != nullptr || p.activation != Activation::none)
    return kNever;
  const TapReach reach = tap_reach(parts, part_count);
  const int64_t columns = columns_of(p, reach, p.rows), positions = kUsualBatch * p.length;
  if (reach.count() == 0 || p.weight_row < reach.count() || columns < W) return kNever;
  const int64_t vectors = divide_up(columns, W), blocks = divide_up(positions, kMaxRows);
  const int64_t chains = divide_up(p.channels, kChain);
  int64_t adding = 0;
  for (int64_t i = 0; i < part_count; ++i)
    adding += kOutput * parts[i].outputs + kAddend * products_inside(parts[i]);
  return p.rows * adding + vectors *
                               (p.channels * (kQuarters * positions / 4 + kVector * blocks) +
                                kChainSum * chains * positions) /
                               kUsualBatch;
}

// Whether sums of the weight's rows do. Alone, a sample has its weights packed for itself, and in a
// large batch they cost next to nothing: windows win near ties where there are many weights, and
// nearer ones where products cost less than packing. They multiply no pairs.
template <class S>
bool sums_of_rows_pay(int64_t weights, int64_t windows, int64_t others) {
  constexpr int64_t kMany = 16 * 1024;
  constexpr int64_t kTwelfths = CONVLM_VECTOR_BYTES == 64 ? 10 : 9;
  if (kDepth<Operand<S>> > 1) return 5 * windows <= 4 * others;
  return weights >= kMany ? kTwelfths * windows <= 12 * others : windows <= others;
}
