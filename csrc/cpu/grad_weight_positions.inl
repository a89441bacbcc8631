// grad_weight with vectors of positions: for groups of few output channels, depthwise above all.

// Adds the products of outputs [first, first + count) of one sample and group to
// lanes[row][product or, last, the bias][lane].
template <class S>
void add_stretch(const WeightGradient<S>& p, const SlidingInput& input, int64_t n, int64_t group,
                 int64_t first, int64_t count, Sum<Compute<Element<S>>>* lanes) {
  using E = Element<S>;
  using T = Compute<E>;
  constexpr int L = kLanes<Sum<T>>;
  const int64_t row_size = p.products() + 1;
  const int64_t grad_pitch = staged_pitch(count, kLanes<T>);
  const T** grad = static_cast<const T**>(scratch(Slot::starts, sizeof(T*) * p.rows));
  T* copies = nullptr;
  for (int64_t m = 0; m < p.rows; ++m) {
    const E* source = reinterpret_cast<const E*>(p.grad_output) + n * p.grad_batch +
                      (group * p.rows + m) * p.grad_row + first * p.grad_position;
    grad[m] = p.grad_position == 1 ? in_place(source) : nullptr;
    if (grad[m] != nullptr) continue;
    if (copies == nullptr)
      copies = static_cast<T*>(scratch(Slot::panel, sizeof(T) * p.rows * grad_pitch));
    stage_row(source, p.grad_position, count, 0, 1, copies + m * grad_pitch, count);
    grad[m] = copies + m * grad_pitch;
  }
  const E* x = reinterpret_cast<const E*>(p.x) + n * p.x_batch + group * p.channels * p.x_channel;
  for_each_stretch(
      input, x, first, first + count,
      [&](auto* in, const int64_t* offset, int64_t q, int64_t outputs) {
        using B = std::remove_const_t<std::remove_pointer_t<decltype(in)>>;
        for (int64_t m = 0; m < p.rows; m += kDotRows) {
          const int rows = static_cast<int>(smaller(kDotRows, p.rows - m));
          const T* a[kDotRows];
          for (int i = 0; i < rows; ++i) a[i] = grad[m + i] + (q - first);
          for (int64_t r = 0; r < p.products(); r += kDotColumns) {
            const int columns = static_cast<int>(smaller(kDotColumns, p.products() - r));
            const B* b[kDotColumns];
            for (int j = 0; j < columns; ++j) b[j] = in + offset[r + j];
            select_dot_products<true>(
                DotProducts<T, B>{a, b, outputs, lanes + (m * row_size + r) * L, row_size}, rows,
                columns, std::make_integer_sequence<int, kDotRows * kDotColumns>{});
          }
        }
      });
  if (p.grad_bias != nullptr)
    for (int64_t m = 0; m < p.rows; ++m)
      add_row(grad[m], count, lanes + (m * row_size + p.products()) * L);
}

// grad_weight and grad_bias, where add(n, group, first, count, lanes) does what add_stretch() does.
template <class S, class Add>
void sum_stretches(const WeightGradient<S>& p, const Add& add) {
  using T = Compute<Element<S>>;
  constexpr int L = kLanes<Sum<T>>;
  constexpr int64_t kMaxBlock = 64, kJobs = 64;  // the bits depend on neither
  const Units units = plan_units(p.batch, p.outputs, kGradWeightChain * kLanes<T>,
                                 p.groups * p.rows * p.products(), 1);
  // partial[piece][group][row][product or, last, the bias]
  const int64_t group_size = p.rows * (p.products() + 1);
  const int64_t piece_size = p.groups * group_size;
  Sum<T>* partial =
      static_cast<Sum<T>*>(scratch(Slot::partial, sizeof(Sum<T>) * units.pieces * piece_size));
  for (int64_t i = 0; i < units.pieces * piece_size; ++i) partial[i] = 0;

  // Rows in the order of memory, which long streams of the processor's prefetching need: samples
  // go round a block of groups.
  const int64_t block = smaller(kMaxBlock, divide_up(p.groups * units.pieces, kJobs));
  const int64_t blocks = divide_up(p.groups, block);
  parallel_jobs(
      units.pieces * blocks, p.batch * p.outputs * p.products() * p.rows * block / units.pieces,
      [&](int64_t begin, int64_t end) {
        Sum<T>* lanes =
            static_cast<Sum<T>*>(scratch(Slot::lanes, sizeof(Sum<T>) * block * group_size * L));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t piece = job / blocks, first_group = job % blocks * block;
          const int64_t groups = smaller(block, p.groups - first_group);
          Sum<T>* sums = partial + piece * piece_size + first_group * group_size;
          for (int64_t u = units.count * piece / units.pieces;
               u < units.count * (piece + 1) / units.pieces; ++u) {
            const Unit unit = unit_at(p, units, u);
            for (int64_t i = 0; i < groups * group_size * L; ++i) lanes[i] = 0;
            for (int64_t n = unit.first_sample; n < unit.first_sample + unit.samples; ++n)
              for (int64_t group = 0; group < groups; ++group)
                add(n, first_group + group, unit.first_position, unit.positions,
                    lanes + group * group_size * L);
            for (int64_t i = 0; i < groups * group_size; ++i)
              sums[i] += sum_of_lanes(lanes + i * L);
          }
        }
        fence_stores();  // of `add`
      });

  const int64_t row_size = p.products() + 1;
  for (int64_t row = 0; row < p.groups * p.rows; ++row)
    for (int64_t r = 0; r < row_size; ++r) {
      Sum<T> total = 0;
      for (int64_t piece = 0; piece < units.pieces; ++piece)
        total += partial[piece * piece_size + row * row_size + r];
      if (r < p.products())
        from_compute(total, p.grad_weight[row * p.products() + r]);
      else if (p.grad_bias != nullptr)
        from_compute(total, p.grad_bias[row]);
    }
}

template <class S>
void grad_weight_vectors_of_positions(const WeightGradient<S>& p) {
  const SlidingInput input =
      slide(p, p.x_channel, p.x_position, p.stride, kLanes<Compute<Element<S>>>,
            scratch_numbers(Slot::plan, sliding_input_numbers(p)));
  sum_stretches(p, [&](int64_t n, int64_t group, int64_t first, int64_t count, auto* lanes) {
    add_stretch(p, input, n, group, first, count, lanes);
  });
}
