// grad_weight with vectors of output channels: grad_output is turned, input positions are the
// scalars.

// panel[t][i] = grad_output of row first + i, zero for count <= i < padded.
template <class S>
void pack_grad_output(const S* source, int64_t row_stride, int64_t position_stride, int64_t count,
                      int64_t padded, int64_t positions, Compute<S>* panel, int64_t pitch) {
  constexpr int W = kLanes<Compute<S>>;
  if (position_stride == 1) {
    for (int64_t i = 0; i < padded; i += W)
      transpose_strip(source + i * row_stride, row_stride, larger(0, smaller(W, count - i)),
                      positions, panel + i, pitch, W);
    return;
  }
  for (int64_t t = 0; t < positions; ++t)
    for (int64_t i = 0; i < padded; ++i)
      panel[t * pitch + i] =
          i < count ? to_compute(source[i * row_stride + t * position_stride]) : 0;
}

#if defined(CONVLM_DOT_BFLOAT16)
// The same for pairs of positions, the last of which may lack its second.
inline void pack_grad_output(const bfloat16* source, int64_t row_stride, int64_t position_stride,
                             int64_t count, int64_t padded, int64_t positions, Pair* panel,
                             int64_t pitch) {
  constexpr int W = kLanes<Pair>;
  int64_t t = 0;
  if (position_stride == 1) {
    const int64_t whole = positions / 2;
    for (int64_t i = 0; i < padded; i += W)
      transpose_strip(reinterpret_cast<const PairStart*>(source + i * row_stride), row_stride,
                      larger(0, smaller(W, count - i)), whole, panel + i, pitch, W);
    t = 2 * whole;
  }
  for (; t < positions; t += 2)
    for (int64_t i = 0; i < padded; ++i) {
      const bfloat16* p = source + i * row_stride + t * position_stride;
      panel[t / 2 * pitch + i] = {i < count ? p->bits : uint16_t(0), i < count && t + 1 < positions
                                                                         ? p[position_stride].bits
                                                                         : uint16_t(0)};
    }
}
#endif

template <class T>
void add_rows(const T* panel, int64_t rows, int64_t pitch, int64_t width, Sum<T>* sum,
              bool accumulate) {
  constexpr int kParts = 4;  // shorter chains err less, and wait less for each other
  for (int64_t i = 0; i < width; i += kLanes<T>) {
    Vector<Sum<T>> part[kParts] = {};
    int64_t t = 0;
    for (; t + kParts <= rows; t += kParts)
#pragma GCC unroll 4
      for (int j = 0; j < kParts; ++j) part[j] = add(part[j], load(panel + (t + j) * pitch + i));
    for (; t < rows; ++t) part[0] = add(part[0], load(panel + t * pitch + i));
    const Vector<Sum<T>> total = (part[0] + part[1]) + (part[2] + part[3]);
    store(sum + i, accumulate ? load(sum + i) + total : total);
  }
}

#if defined(CONVLM_DOT_BFLOAT16)
// Adds the last positions of samples that have an odd number of them. What follows in the row may
// be infinite, so it must not meet the zero in the panel.
CONVLM_INLINE void multiply_last(Product<Pair> p, int rows, int width) {
  const int64_t samples = p.outer;
  int64_t* in_turn = static_cast<int64_t*>(
      scratch(Slot::last, (sizeof(int64_t) + sizeof(Pair) * kMaxRows) * samples));
  Pair* last = reinterpret_cast<Pair*>(in_turn + samples);
  const Pair* start[kMaxRows];
  for (int64_t i = 0; i < samples; ++i) in_turn[i] = i;
  for (int r = 0; r < rows; ++r) {
    start[r] = last + r * samples;
    for (int64_t i = 0; i < samples; ++i)
      last[r * samples + i] = {p.rows[r][p.row_start[i] + p.inner].low, 0};
  }
  p.vectors += p.inner * p.vector_step;
  p.accumulate = p.accumulate || p.inner > 0;
  p.rows = start;
  p.row_start = in_turn;
  p.inner = 1;
  multiply<Pair, false>(p, rows, width, kGradWeightChain);
}
#endif

// One job: the sums of a range of panels (vectors of output channels) and of products, over one
// piece.
template <class S>
struct RowsPlan {
  Staging staging;
  Units units;
  int64_t vectors, panels, pitch;  // of one group's output channels
  Cuts cuts;
  int64_t panel_size,
      piece_size;  // in elements of partial[piece][group][panel][product or bias][lane]

  int64_t panel_vector(int64_t panel) const { return vectors * panel / panels; }
};

template <class S>
void sum_piece(const WeightGradient<S>& p, const RowsPlan<S>& plan, int64_t job,
               Compute<S>* partial) {
  using T = Operand<S>;
  using E = Element<S>;
  constexpr int W = kLanes<T>;
  constexpr int D = kDepth<T>;
  const Units& units = plan.units;
  const auto [piece, group, range, split] = PieceJob(plan.cuts, p.groups, job);
  const int64_t first_product = p.products() * split / plan.cuts.splits;
  const int64_t products = p.products() * (split + 1) / plan.cuts.splits - first_product;
  const int64_t first_channel = first_product / p.taps;
  const int64_t channels = divide_up(first_product + products, p.taps) - first_channel;
  const int64_t first_panel = plan.panels * range / plan.cuts.panel_ranges;
  const int64_t last_panel = plan.panels * (range + 1) / plan.cuts.panel_ranges;
  const bool wants_bias = p.grad_bias != nullptr && split == 0;
  const int64_t first_row = plan.panel_vector(first_panel) * W;
  const int64_t rows = smaller(p.rows, plan.panel_vector(last_panel) * W) - first_row;
  const bool in_runs = units.samples == 1 && p.x_position == 1 && p.grad_position == 1;
  const S* x = p.x + (group * p.channels + first_channel) * p.x_channel;
  const S* grad_output = p.grad_output + (group * p.rows + first_row) * p.grad_row;

  const int64_t sample_size = channels * plan.staging.channel_pitch();
  Compute<E>* staged = static_cast<Compute<E>*>(
      scratch(Slot::staged, sizeof(Compute<E>) * units.samples * sample_size));
  T* panel = static_cast<T*>(
      scratch(Slot::panel, sizeof(T) * units.samples * (units.positions / D) * plan.pitch));
  int64_t* starts =
      static_cast<int64_t*>(scratch(Slot::starts, sizeof(int64_t) * 2 * units.samples));

  const int64_t strips = divide_up(products, kMaxRows);
  const int64_t first_unit = units.count * piece / units.pieces;
  const int64_t last_unit = units.count * (piece + 1) / units.pieces;
  // The next piece is the next job, unless pieces are cut further.
  const int64_t ahead = plan.cuts.jobs() * p.groups == 1 ? units.count : last_unit;
  for (int64_t u = first_unit; u < last_unit; ++u) {
    const Unit unit = unit_at(p, units, u);
    // While this unit is summed, what the next one reads is asked for, where it is of one sample.
    LinesAhead x_ahead, grad_ahead;
    if (u + 1 < ahead && in_runs) {
      const Unit next = unit_at(p, units, u + 1);
      x_ahead = lines_to_stage(plan.staging, x + next.first_sample * p.x_batch, channels,
                               p.x_channel, p.x_position, next.first_position * p.stride);
      grad_ahead = {grad_output + next.first_sample * p.grad_batch + next.first_position,
                    rows,
                    p.grad_row,
                    1,
                    0,
                    next.positions};
    }
    const int64_t share =
        divide_up(x_ahead.count() + grad_ahead.count(), (last_panel - first_panel) * strips);
    const int64_t steps = divide_up(unit.positions, D);
    for (int64_t i = 0; i < unit.samples; ++i) {
      stage(plan.staging, reinterpret_cast<const E*>(x) + (unit.first_sample + i) * p.x_batch,
            channels, p.x_channel, p.x_position, p.length, unit.first_position * p.stride,
            staged + i * sample_size);
      starts[i] = i * (sample_size / D);
      starts[units.samples + i] = i * steps * plan.pitch;
    }
    for (int64_t index = first_panel; index < last_panel; ++index) {
      const int64_t first_vector = plan.panel_vector(index);
      const int64_t width = plan.panel_vector(index + 1) - first_vector;
      const int64_t row = first_vector * W - first_row;
      Sum<T>* sums =
          partial + piece * plan.piece_size + (group * plan.panels + index) * plan.panel_size;
      for (int64_t i = 0; i < unit.samples; ++i)
        pack_grad_output(grad_output + (unit.first_sample + i) * p.grad_batch + row * p.grad_row +
                             unit.first_position * p.grad_position,
                         p.grad_row, p.grad_position, smaller(width * W, rows - row), width * W,
                         unit.positions, panel + i * steps * plan.pitch, plan.pitch);
      if (wants_bias)
        add_rows(panel, unit.samples * steps, plan.pitch, width * W,
                 sums + p.products() * plan.pitch, u != first_unit);
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t r0 = first_product + products * strip / strips;
        const int64_t r1 = first_product + products * (strip + 1) / strips;
        const T* start[kMaxRows];
        for (int64_t r = r0; r < r1; ++r)
          start[r - r0] = reinterpret_cast<const T*>(
              staged + (r / p.taps - first_channel) * plan.staging.channel_pitch() +
              plan.staging.tap_start[r % p.taps]);
        Product<T> product{start,
                           panel,
                           starts,
                           starts + units.samples,
                           unit.samples,
                           unit.positions / D,
                           plan.staging.advance,
                           plan.pitch,
                           sums + r0 * plan.pitch,
                           plan.pitch,
                           u != first_unit};
        const int height = static_cast<int>(r1 - r0);
        grad_ahead.ask<LinesAhead::kIntoL2>(x_ahead.ask<LinesAhead::kIntoL2>(share));
        if (product.inner > 0)
          multiply<T, false>(product, height, static_cast<int>(width), kGradWeightChain);
        if constexpr (D > 1)
          if (unit.positions % D != 0) multiply_last(product, height, static_cast<int>(width));
      }
    }
  }
}

// Adds up the pieces of one panel and turns it into place.
template <class S>
void finish_panel(const WeightGradient<S>& p, const RowsPlan<S>& plan, int64_t job,
                  Compute<S>* partial) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  T* sums = partial + job * plan.panel_size;
  const int64_t group = job / plan.panels, panel = job % plan.panels;
  const int64_t first = plan.panel_vector(panel) * W, last = plan.panel_vector(panel + 1) * W;
  const int64_t rows = smaller(last, p.rows) - first;
  const int64_t used = plan.panel_size - (p.grad_bias == nullptr ? plan.pitch : 0);
  for (int64_t piece = 1; piece < plan.units.pieces; ++piece) {
    const T* more = sums + piece * plan.piece_size;
    for (int64_t start = 0; start < used; start += plan.pitch)
      for (int64_t i = start; i < start + last - first; i += W)
        store(sums + i, load(sums + i) + load(more + i));
  }
  const int64_t row = group * p.rows + first;
  transpose(sums, plan.pitch, p.products(), rows, p.grad_weight + row * p.products(), p.products());
  if (p.grad_bias != nullptr)
    for (int64_t i = 0; i < rows; ++i)
      from_compute(sums[p.products() * plan.pitch + i], p.grad_bias[row + i]);
}

template <class S>
void grad_weight_vectors_of_rows(const WeightGradient<S>& p) {
  using T = Operand<S>;
  constexpr int W = kLanes<T>;
  RowsPlan<S> plan;
  plan.vectors = divide_up(p.rows, W);
  plan.panels = divide_up(plan.vectors, kMaxVectors);
  plan.pitch = divide_up(plan.vectors, plan.panels) * W;
  plan.panel_size = (p.products() + 1) * plan.pitch;
  plan.piece_size = p.groups * plan.panels * plan.panel_size;
  plan.units =
      plan_units(p.batch, p.outputs, kGradWeightChain * kDepth<T>, plan.piece_size, kDepth<T>);
  int64_t* memory = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  plan.staging.stream_start = memory;
  plan.staging.tap_start = memory + p.taps;
  // The positions of a pair are neighbours.
  const auto lay_out = kDepth<T> == 1 ? &plan_for_scalars : &plan_for_vectors;
  lay_out(plan.staging, plan.units.positions, p.stride, p.tap_offset, p.taps,
          kLanes<Compute<Element<S>>>);

  // A range stages x once for all its panels, a split packs grad_output for all its products.
  plan.cuts = cut_into_jobs(divide_up(threads(), plan.units.pieces * p.groups), plan.panels,
                            divide_up(p.products(), 64));

  Sum<T>* partial = static_cast<Sum<T>*>(
      scratch(Slot::partial, sizeof(Sum<T>) * plan.units.pieces * plan.piece_size));
  const int64_t jobs = plan.units.pieces * p.groups * plan.cuts.jobs();
  parallel_jobs(jobs, divide_up(p.batch * p.outputs * p.groups * p.rows * p.products(), jobs),
                [&](int64_t begin, int64_t end) {
                  for (int64_t job = begin; job < end; ++job) sum_piece(p, plan, job, partial);
                });
  parallel_jobs(p.groups * plan.panels, plan.panel_size * plan.units.pieces,
                [&](int64_t begin, int64_t end) {
                  for (int64_t job = begin; job < end; ++job) finish_panel(p, plan, job, partial);
                });
}
