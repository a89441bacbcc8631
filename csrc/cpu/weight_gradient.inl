// grad_weight[o][c][k] = sum over n, t of grad_output[n][o][t] * x[n][c][input_position(t, k)], and
// grad_bias[o] = sum over n, t of grad_output[n][o][t].
// The sum over samples and positions is cut into units, and the units into pieces. How many pieces
// is a matter of geometry alone, and their sums are added in order: any number of threads gives the
// same bits.

template <class S>
struct WeightGradient {
  int64_t batch, groups, rows, channels;  // rows: output channels of one group
  int64_t outputs, length, stride, taps;
  Precision precision;
  const int64_t* tap_offset;
  const S* grad_output;
  int64_t grad_batch, grad_row, grad_position;  // strides
  const S* x;
  int64_t x_batch, x_channel, x_position;  // strides
  S* grad_weight;
  S* grad_bias;  // null where it is not wanted

  int64_t products() const { return channels * taps; }
};

// A unit is one stretch of positions of one sample, or several whole samples where they are short.
// Stretches are cut at multiples of `depth` positions.
struct Units {
  int64_t depth, blocks, positions, samples, count, pieces;
};

// Into how many pieces so many units go, of `sums` elements each: a power of two, which most
// numbers of threads share evenly.
inline int64_t count_pieces(int64_t units, int64_t sums) {
  constexpr int64_t kMaxPieces = 32;
  constexpr int64_t kMaxSums =
      256 * 1024;  // of all pieces together, or adding them up costs too much
  const int64_t most = smaller(smaller(units, kMaxPieces), kMaxSums / sums);
  int64_t pieces = 1;
  while (2 * pieces <= most) pieces *= 2;
  return pieces;
}

// `length` bounds the products that one unit adds up, `sums` is the number of elements of one
// piece.
inline Units plan_units(int64_t batch, int64_t outputs, int64_t length, int64_t sums,
                        int64_t depth) {
  Units u;
  u.depth = depth;
  u.blocks = divide_up(outputs, length);
  u.positions = divide_up(divide_up(outputs, depth), u.blocks) * depth;
  u.samples = smaller(batch, larger(1, length / outputs));
  u.count = divide_up(batch, u.samples) * u.blocks;
  u.pieces = count_pieces(u.count, sums);
  return u;
}

// How one piece is cut further: panels of rows into ranges, products into splits. Each range reads
// x anew, each split grad_output.
struct Cuts {
  int64_t panel_ranges, splits;

  int64_t jobs() const { return panel_ranges * splits; }
};

// One of pieces * groups * cuts.jobs(), the jobs of a piece next to each other.
struct PieceJob {
  int64_t piece, group, range, split;

  PieceJob(const Cuts& cuts, int64_t groups, int64_t job)
      : piece(job / cuts.jobs() / groups),
        group(job / cuts.jobs() % groups),
        range(job / cuts.splits % cuts.panel_ranges),
        split(job % cuts.splits) {}
};

// No further than so many jobs need it, and evenly where there may be enough splits.
inline Cuts cut_into_jobs(int64_t jobs, int64_t panels, int64_t most_splits) {
  int64_t ranges = panels, rest = jobs;
  while (rest > 0) {  // Euclid's common divisor
    const int64_t next = ranges % rest;
    ranges = rest;
    rest = next;
  }
  if (jobs / ranges > most_splits) ranges = smaller(panels, divide_up(jobs, most_splits));
  return {ranges, smaller(most_splits, divide_up(jobs, ranges))};
}

struct Unit {
  int64_t first_sample, samples, first_position, positions;
};

template <class S>
CONVLM_INLINE Unit unit_at(const WeightGradient<S>& p, const Units& u, int64_t index) {
  const int64_t block = index % u.blocks, sample = index / u.blocks * u.samples;
  const int64_t steps = divide_up(p.outputs, u.depth);
  const int64_t first = steps * block / u.blocks * u.depth;
  const int64_t last = smaller(p.outputs, steps * (block + 1) / u.blocks * u.depth);
  return {sample, smaller(u.samples, p.batch - sample), first, last - first};
}

// ---- taps that read nothing but padding ----

// The same for the taps that read a part of the input, and for one tap at least. Its gradient of
// the weight has yet to be spread out.
template <class S>
WeightGradient<S> of_taps_inside(WeightGradient<S> p) {
  const TapRange taps =
      taps_inside(p.tap_offset, p.taps, p.stride, p.length, 0, larger(1, p.outputs));
  const int64_t first = smaller(taps.first, p.taps - 1);
  p.tap_offset += first;
  p.taps = larger(1, taps.count());
  return p;
}

// From `inside`, the gradient of `of_taps_inside(p)`, to that of all taps.
template <class S>
void spread_taps(const WeightGradient<S>& p, const WeightGradient<S>& inside) {
  const int64_t first = inside.tap_offset - p.tap_offset;
  const int64_t rows = p.groups * p.rows * p.channels;
  parallel_jobs(rows, p.taps, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * p.taps; i < end * p.taps; ++i) p.grad_weight[i] = {};
    for (int64_t row = begin; row < end; ++row)
      for (int64_t k = 0; k < inside.taps; ++k)
        p.grad_weight[row * p.taps + first + k] = inside.grad_weight[row * inside.taps + k];
  });
}

// Has `sum` write the gradient of `inside`, which is of_taps_inside(p), to where it belongs.
template <class S, class Body>
void sum_taps_inside(const WeightGradient<S>& p, WeightGradient<S> inside, const Body& sum) {
  if (inside.taps == p.taps) return sum(p);
  inside.grad_weight =
      static_cast<S*>(scratch(Slot::inside, sizeof(S) * p.groups * p.rows * inside.products()));
  sum(inside);
  spread_taps(p, inside);
}
