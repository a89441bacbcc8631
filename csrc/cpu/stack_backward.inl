// The gradients of a stack, from the last layer to the first, over the rows that forward kept.

// From a tile of the input's gradient to the gradients of the layer below.
template <class T>
struct FinishGradients {
  const StackLayer& layer;       // whose input this is
  const T* residual;             // gradient of the layer's result; null without a residual
  const int32_t* residual_rows;  // where an input row finds it; null: at its own index
  const StackLayer* below;       // null below the first layer
  LayerRows<T> kept;             // of the layer below
  T *whole, *sums;               // results, either may be null
  RowOrder order = {};

  CONVLM_INLINE void operator()(T* tile, int64_t tile_pitch, int64_t first, int64_t count) const {
    constexpr int W = kLanes<T>;
    const int64_t channels = layer.in_channels, pitch = row_pitch<T>(channels);
    for (int64_t i = 0; residual != nullptr && i < count; ++i) {
      T* gradient = tile + i * tile_pitch;
      const int64_t from =
          residual_rows == nullptr ? order[first + i] : residual_rows[order[first + i]];
      for (int64_t c = 0; from >= 0 && c < channels; c += W)
        store(gradient + c, load(gradient + c) + load(residual + from * pitch + c));
    }
    for (int64_t i = 0; whole != nullptr && i < count; ++i)
      for (int64_t c = 0; c < channels; c += W)
        store(whole + order[first + i] * pitch + c, load(tile + i * tile_pitch + c));
    if (below != nullptr)
      apply_slopes<T>(*below, {tile, tile_pitch, count, channels, kept, sums,
                               row_pitch<T>(below->columns), first, order});
  }
};

template <class S>
struct StackGradients {
  using T = Compute<S>;
  StackGroup<S>& group;
  const WeightSums<T>* sums;                   // one for each layer
  int64_t samples_before;                      // that are in these sums already
  T *whole[2], *of_sums[2];                    // of every other layer
  T *linked, *linked_residual, *linked_parts;  // for layers that multiply first
  T* added;                                    // for those that are filtered
  int32_t *present, *order;
  T* input;
  mutable bool finite =
      true;  // the products of a filtered first layer; those of others show in sums

  StackGradients(StackGroup<S>& rows, const WeightSums<T>* to, int64_t before)
      : group(rows), sums(to), samples_before(before) {}

  void take(Arena& arena) {
    const StackArguments& a = group.a;
    int64_t largest_whole = 0, largest = 0, largest_linked = 0, largest_residual = 0;
    int64_t largest_parts = 0, most_present = 0, most_ordered = 0, most_added = 0;
    for (int64_t i = 0; i < a.depth; ++i) {
      const StackLayer layer = group.layer(i);
      const int64_t pitch = row_pitch<T>(layer.columns);
      largest = larger(largest, layer.out_rows * pitch);
      largest_whole = larger(largest_whole, layer.out_rows * row_pitch<T>(layer.out_channels()));
      most_added = larger(most_added, filter_size<T>(layer, layer.columns, 1));
      if (!layer.multiply_first()) {
        most_ordered = larger(most_ordered, layer.in_rows);
        continue;
      }
      largest_linked = larger(largest_linked, layer.kernel_size * layer.in_rows * pitch);
      most_present = larger(most_present, layer.kernel_size * layer.in_rows);
      if (layer.residual)
        largest_residual =
            larger(largest_residual, layer.in_rows * row_pitch<T>(layer.in_channels));
      if (layer.out_rows > rows_between_totals(layer.in_rows))
        largest_parts = larger(largest_linked, largest_residual);
    }
    for (T*& rows : whole) rows = arena.take<T>(largest_whole + kRowSlack);
    for (T*& rows : of_sums) rows = arena.take<T>(largest + kRowSlack);
    linked = arena.take<T>(largest_linked + kRowSlack);
    linked_residual = arena.take<T>(largest_residual + kRowSlack);
    linked_parts = arena.take<T>(largest_parts);
    added = arena.take<T>(most_added);
    present = static_cast<int32_t*>(
        scratch(Slot::stack_readers, sizeof(int32_t) * (most_present + most_ordered)));
    order = present + most_present;
    const StackLayer layer = group.layer(0);
    input = arena.take<T>(layer.in_rows * row_pitch<T>(layer.in_channels) + kRowSlack);
  }

  // Rows of the gradient of the last layer's result.
  T* output() const { return (ends_with_sums() ? of_sums : whole)[(group.a.depth - 1) % 2]; }

  void run(bool with_input) const {
    const StackArguments& a = group.a;
    start();
    for (int64_t i = a.depth - 1; i >= 0; --i) {
      const StackLayer layer = group.layer(i);
      add_bias_gradient(layer, i);
      if (layer.multiply_first())
        through_links(layer, i, with_input);
      else if (layer.is_filtered())
        through_filter(layer, i, with_input);
      else
        through_readers(layer, i, with_input);
    }
  }

 private:
  // Whether the result is the last layer's sums, and their gradient its own.
  bool ends_with_sums() const {
    const StackLayer& last = group.last();
    return last.activation == Activation::none && !last.gated && !last.residual;
  }

  void start() const {
    if (ends_with_sums()) return;
    const int64_t i = group.a.depth - 1;
    const StackLayer layer = group.layer(i);
    LayerRows<T> kept = group.rows_of(i);
    const int64_t pitch = row_pitch<T>(layer.out_channels());
    const int64_t out_pitch = row_pitch<T>(layer.columns);
    parallel_jobs(layer.out_rows, kMemoryOperation * layer.columns,
                  [&](int64_t begin, int64_t end) {
                    apply_slopes<T>(layer, {whole[i % 2] + begin * pitch,
                                            pitch,
                                            end - begin,
                                            layer.out_channels(),
                                            kept,
                                            of_sums[i % 2],
                                            out_pitch,
                                            begin,
                                            {}});
                  });
  }

  void add_bias_gradient(const StackLayer& layer, int64_t i) const {
    const int64_t pitch = row_pitch<T>(layer.columns);
    const WeightSums<T>& s = sums[i];
    for (int64_t first = 0; first < layer.out_rows; first += kGradientRows) {
      const int64_t last = smaller(first + kGradientRows, layer.out_rows);
      add_tile(of_sums[i % 2] + first * pitch, pitch, last - first, s.pitch(), s.bias());
      if (fills_sum(rows_before(i) + first, rows_before(i) + last))
        s.add_to_total(s.bias(), s.pitch());
    }
  }

  int64_t rows_before(int64_t i) const {
    return samples_before == 0 ? 0 : samples_before * (group.a.layers[i].out_rows / group.a.batch);
  }

  FinishGradients<T> finish(const StackLayer& layer, int64_t i) const {
    FinishGradients<T> f{layer, nullptr, nullptr, nullptr, {}, nullptr, nullptr};
    if (layer.residual) f.residual = whole[i % 2];
    if (i == 0) {
      f.whole = input;
      return f;
    }
    f.below = &group.a.layers[i - 1];
    f.kept = group.rows_of(i - 1);
    f.sums = of_sums[(i - 1) % 2];
    if (f.below->residual) f.whole = whole[(i - 1) % 2];
    return f;
  }

  FinishGradients<T> finish_read(const StackLayer& layer, int64_t i) const {
    FinishGradients<T> f = finish(layer, i);
    f.residual_rows = layer.readers + (layer.kernel_size - 1) * layer.reader_pitch;
    return f;
  }

  // Where a tap reads each input row for one row of the result at most, gradients are gathered.
  void through_readers(const StackLayer& layer, int64_t i, bool with_input) const {
    const int64_t pitch = row_pitch<T>(layer.columns);
    LinkedRows<T> gradient{of_sums[i % 2], pitch, 0, group.plan.zeros, nullptr, 0};
    add_weight_gradient(group.input_of(i), gradient, rows_before(i), layer.out_rows, sums[i]);
    if (i == 0 && !with_input) return;
    gradient.links = layer.readers;
    gradient.link_pitch = layer.reader_pitch;
    FinishGradients<T> f = finish_read(layer, i);
    f.order = gradient.order = order_by_readers(layer, order);
    multiply_rows(gradient, layer.in_rows, group.plan.packed[i].turned,
                  taps_of_chain(layer.columns), f);
  }

  // The same where the layer is filtered fast.
  void through_filter(const StackLayer& layer, int64_t i, bool with_input) const {
    const LinkedRows<T> in = group.input_of(i);
    const FilterOperand<T> inputs = filter_inputs(layer, in, group.differences);
    const FilterOperand<T> gradients = filter_gradients(
        layer, {of_sums[i % 2], row_pitch<T>(layer.columns), 0, in.zeros, nullptr, 0}, added);
    add_weight_gradient<T>(inputs, gradients,
                           samples_before * (group.a.layers[i].filter.tiles / group.a.batch),
                           layer.filter.tiles, sums[i]);
    if (i == 0 && !with_input) return;
    const FilterRows<T> products(group.products, layer, layer.in_channels);
    const PackedWeight<T>& turned = group.plan.packed[i].turned;
    multiply_components(layer, gradients, turned, products);
    if (i == 0) finite = products_are_finite(layer, products);
    make_rows<T>(
        layer.in_rows, turned.panels.columns(), kFilterComponents,
        [&](int64_t row, T* out) { add_filtered_gradient(layer, products, in.zeros, row, out); },
        finish_read(layer, i));
  }

  // Else they are added up for each input row and tap first.
  void through_links(const StackLayer& layer, int64_t i, bool with_input) const {
    const int64_t pitch = row_pitch<T>(layer.columns), tap_pitch = layer.in_rows * pitch;
    add_to_links(of_sums[i % 2], pitch, layer.out_rows, layer.links, layer.link_pitch,
                 layer.kernel_size, layer.in_rows, linked, linked_parts);
    find_present(layer, present);
    LinkedRows<T> rows = group.input_of(i);
    rows.links = nullptr;
    const LinkedRows<T> gradient{linked,           pitch,   tap_pitch,
                                 group.plan.zeros, present, layer.in_rows};
    // All samples go through such a layer together, so these rows are the first ones.
    add_weight_gradient(rows, gradient, 0, layer.in_rows, sums[i]);
    if (i == 0 && !with_input) return;
    FinishGradients<T> f = finish(layer, i);
    if (layer.residual) {
      add_to_links(whole[i % 2], row_pitch<T>(layer.in_channels), layer.out_rows,
                   layer.links + (layer.kernel_size - 1) * layer.link_pitch, layer.link_pitch, 1,
                   layer.in_rows, linked_residual, linked_parts);
      f.residual = linked_residual;
    }
    multiply_rows(gradient, layer.in_rows, group.plan.packed[i].turned,
                  taps_of_chain(layer.columns), f);
  }
};

template <class S>
struct StackBackward {
  using T = Compute<S>;

  static void run(const StackArguments& a) {
    run_filtered(a, [&] { return run_as_linked(a); });
  }

  // Whether the gradients stand.
  static bool run_as_linked(const StackArguments& a) {
    const StackPlan<T> plan = plan_stack<S>(a, true);
    const int64_t groups = divide_up(a.batch, larger(1, a.group));
    StackSums<T> sums;
    lay_out(Slot::stack_sums, [&](Arena& arena) { sums.take(arena, a, groups); });
    sums.start(a);
    bool finite = true;
    constexpr int64_t kWork = 1 << 20;  // always worth a thread
    parallel_jobs(sums.pieces, kWork, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t first = groups * piece / sums.pieces;
        for (int64_t g = first; g < groups * (piece + 1) / sums.pieces; ++g)
          if (!run_group(a, plan, g, sums.layers + piece * a.depth, (g - first) * a.group))
            __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
      }
    });
    if (is_filtered(a) && !(finite && sums.are_finite())) return false;
    finish_sums<S>(a, sums);
    return true;
  }

  // Whether no infinite product was added up to the gradient of the input by a filter.
  static bool run_group(const StackArguments& a, const StackPlan<T>& plan, int64_t index,
                        const WeightSums<T>* sums, int64_t samples_before) {
    StackGroup<S> group(a, plan, index);
    StackGradients<S> gradients(group, sums, samples_before);
    lay_out(Slot::stack_group, [&](Arena& arena) {
      group.take(arena);
      gradients.take(arena);
    });
    group.stage_input();
    rows_from<S>(a.grad_output, group.first, group.samples, group.last().out_channels(),
                 a.out_length, gradients.output());
    gradients.run(a.grad_input.data != nullptr);
    if (a.grad_input.data != nullptr) write_input(a, group, gradients.input);
    return gradients.finite;
  }

  static void write_input(const StackArguments& a, const StackGroup<S>& group, const T* rows) {
    S* out = static_cast<S*>(a.grad_input.data);
    const int64_t channels = a.layers[0].in_channels;
    if (!a.input_is_rows) return rows_to(rows, group.first, group.samples, channels, a.length, out);
    const PutGradient<S> put(a.gradient.as_step, a.gradient.lr);
    for (int64_t r = 0; r < a.layers[0].in_rows; ++r)
      put.row(rows + r * row_pitch<T>(channels), 1, channels, out + r * a.grad_input.stride[0],
              a.grad_input.stride[1]);
  }
};

void stack_forward(const StackArguments& arguments) {
  for_dtype<StackForward>(arguments, &Kernels::stack_forward);
}
void stack_backward(const StackArguments& arguments) {
  for_dtype<StackBackward>(arguments, &Kernels::stack_backward);
}
