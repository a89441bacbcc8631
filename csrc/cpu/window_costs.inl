// What the kernels of windows cost, for one sample of `kUsualBatch`, in multiply-adds of vectors.
// Fitted to the times of 30,000 random problems.

// To lay out what one sample's outputs read.
inline int64_t cost_to_stage_windows(int64_t channels, int64_t taps, int64_t outputs,
                                     int64_t in_step) {
  constexpr int64_t kElement = 1, kChannel = 5;
  const bool turned = windows_are_turned(taps, outputs, in_step);
  return outputs * channels * (kElement * taps + (turned ? 0 : kChannel));
}

// Outputs of one sample that are few: more would gain little, and lose the bits of a step.
constexpr int64_t kMostWindows = 16;

// Dot products of windows and weights, which must lie alike.
template <class S>
int64_t cost_of_windows(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kEighths = 7, kSum = 7, kBlock = 300;
  constexpr int64_t kVector = CONVLM_VECTOR_BYTES == 64 ? 2 : 1;  // as many bytes to read again
  if (!natural_weight(p) || p.products() < W || p.outputs > kMostWindows) return kNever;
  const int64_t vectors = divide_up(p.products(), W), positions = kUsualBatch * p.outputs;
  const int64_t blocks = divide_up(positions, kDotRows);
  return (p.rows * (vectors * (kEighths * positions / 8 + kVector * blocks) + kSum * positions) +
          kBlock * divide_up(p.rows, W) * blocks) /
             kUsualBatch +
         cost_to_stage_windows(p.channels, p.taps, p.outputs, p.in_step * p.in_position);
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

// Alone, a sample has its weights packed for itself, and in a large batch they cost next to
// nothing: windows win near ties where there are many weights, and nearer ones where products cost
// less than packing. They multiply no pairs.
template <class S>
bool windows_pay(int64_t weights, int64_t windows, int64_t others) {
  constexpr int64_t kMany = 16 * 1024;
  constexpr int64_t kTwelfths = CONVLM_VECTOR_BYTES == 64 ? 10 : 9;
  if (kDepth<Operand<S>> > 1) return 5 * windows <= 4 * others;
  return weights >= kMany ? kTwelfths * windows <= 12 * others : windows <= others;
}
