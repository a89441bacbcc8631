// Which of two equivalent kernels a geometry gets.

// Both orders round the rows or the positions up to whole vectors: take the one that wastes less.
// Vectors of positions need no turning of the output, so they win ties and near-ties.
template <class S>
void correlate(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  if (p.batch == 0 || p.outputs <= 0) return;
  // Few rows per channel leave nothing to block over. Past one chain the sums need their tile, and
  // taps too far apart would stage more than they read at the edges.
  const int64_t spread = p.tap_offset[p.taps - 1] - p.tap_offset[0];
  if (p.channels == 1 && p.rows <= 2 && p.in_step == 1 && p.in_position == 1 && p.out_step == 1 &&
      p.taps <= kChain && larger(spread, -spread) <= 1024 * p.taps)
    return correlate_depthwise(p);
  const int64_t by_positions = divide_up(p.outputs, W) * p.rows;
  const int64_t by_rows = divide_up(p.rows, W) * p.outputs;
  // A lone channel has no other to share a pair with.
  const bool lone = p.channels == 1;
  if (by_positions * 8 <= by_rows * 9)
    lone ? correlate_vectors_of_positions<Compute<S>>(p)
         : correlate_vectors_of_positions<Operand<S>>(p);
  else
    lone ? correlate_vectors_of_rows<Compute<S>>(p) : correlate_vectors_of_rows<Operand<S>>(p);
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
  constexpr int D = kDepth<Operand<S>>;
  const int64_t by_positions = p.rows * (2 * divide_up(p.outputs, W * D) + W);
  const int64_t by_rows = divide_up(p.rows, W) * divide_up(p.outputs, D);
  if (by_positions < by_rows)
    grad_weight_vectors_of_positions(p);
  else
    grad_weight_vectors_of_rows(p);
}
