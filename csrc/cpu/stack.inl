// A stack in one call, forward: the rows of one layer after the other, a group of samples at a time
// so that they stay in cache.

// ---- between tensors and rows ----

// rows[n * length + t][c] = in[n][c][t] for some samples.
template <class S>
void rows_from(const ConstTensor& t, int64_t first, int64_t samples, int64_t channels,
               int64_t length, Compute<S>* rows) {
  const int64_t pitch = row_pitch<Compute<S>>(channels);
  const S* in = static_cast<const S*>(t.data) + first * t.stride[0];
  parallel_jobs(samples, length * channels, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const S* sample = in + n * t.stride[0];
      Compute<S>* out = rows + n * length * pitch;
      if (t.stride[2] == 1)
        transpose(sample, t.stride[1], channels, length, out, pitch);
      else
        for (int64_t i = 0; i < length; ++i)
          stage_row(sample + i * t.stride[2], t.stride[1], channels, 0, 1, out + i * pitch,
                    channels);
    }
  });
}

// The other way round, to a contiguous tensor.
template <class S>
void rows_to(const Compute<S>* rows, int64_t first, int64_t samples, int64_t channels,
             int64_t length, S* out) {
  const int64_t pitch = row_pitch<Compute<S>>(channels);
  parallel_jobs(samples, length * channels, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      transpose(rows + n * length * pitch, pitch, length, channels,
                out + (first + n) * channels * length, length);
  });
}

// ---- the layers ----

// What all groups share.
template <class T>
struct StackPlan {
  PackedLayer<T>* packed;
  const T* zeros;
};

template <class S>
StackPlan<Compute<S>> plan_stack(const StackArguments& a, bool with_turned) {
  using T = Compute<S>;
  StackPlan<T> plan{};
  T* zeros = nullptr;
  int64_t widest = 0;
  for (int64_t i = 0; i < a.depth; ++i)
    widest = larger(widest, larger(a.layers[i].in_channels, a.layers[i].columns));
  widest += 2 * kRowSlack;
  plan.packed =
      static_cast<PackedLayer<T>*>(scratch(Slot::stack_layers, sizeof(PackedLayer<T>) * a.depth));
  lay_out(Slot::stack, [&](Arena& arena) {
    for (int64_t i = 0; i < a.depth; ++i)
      plan.packed[i] = take_packed<T>(arena, a.layers[i], with_turned);
    zeros = arena.take<T>(widest);
  });
  for (int64_t c = 0; c < widest; ++c) zeros[c] = 0;
  plan.zeros = zeros;
  constexpr int64_t kWork = 1 << 20;  // always worth a thread
  parallel_jobs(a.depth, kWork, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_layer<S>(a.layers[i], plan.packed[i], with_turned);
  });
  return plan;
}

// Some samples on their way through the layers.
template <class S>
struct StackGroup {
  using T = Compute<S>;
  const StackArguments& a;
  const StackPlan<T>& plan;
  int64_t first, samples;
  T *input, *output;  // rows before the first layer and after the last one
  T* passing[2];      // rows in between, in turn, where nothing is kept
  T *differences, *products;

  StackGroup(const StackArguments& arguments, const StackPlan<T>& shared, int64_t index)
      : a(arguments),
        plan(shared),
        first(index * a.group),
        samples(smaller(a.group, a.batch - first)) {}

  // A layer with the rows of this group.
  StackLayer layer(int64_t i) const {
    StackLayer result = a.layers[i];
    if (samples == a.batch) return result;
    if (i > 0 || !a.input_is_rows) result.in_rows = result.in_rows / a.batch * samples;
    result.out_rows = result.out_rows / a.batch * samples;
    result.filter.tiles = result.filter.tiles / a.batch * samples;
    return result;
  }
  const StackLayer& last() const { return a.layers[a.depth - 1]; }

  void take(Arena& arena) {
    input = arena.take<T>(layer(0).in_rows * row_pitch<T>(a.layers[0].in_channels) + kRowSlack);
    output = arena.take<T>(layer(a.depth - 1).out_rows * row_pitch<T>(last().out_channels()) +
                           kRowSlack);
    int64_t largest = 0;
    for (int64_t i = 0; a.saved == nullptr && i + 1 < a.depth; ++i)
      largest = larger(largest, layer(i).out_rows * row_pitch<T>(a.layers[i].out_channels()));
    for (T*& rows : passing) rows = arena.take<T>(largest + kRowSlack);
    int64_t most_differences = 0, most_products = 0;
    for (int64_t i = 0; i < a.depth; ++i) {
      const StackLayer& l = a.layers[i];
      most_differences = larger(most_differences, filter_size<T>(l, l.in_channels, 2));
      // Those of gradients are as wide as the input.
      const int64_t filtered =
          filter_size<T>(l, larger(l.in_channels, l.columns), kFilterComponents);
      most_products = larger(most_products, larger(tap_products_size<T>(l), filtered));
    }
    differences = arena.take<T>(most_differences);
    products = arena.take<T>(most_products);
  }

  // Where the result of a layer goes.
  LayerRows<T> rows_of(int64_t wanted) const {
    const bool is_last = wanted == a.depth - 1;
    LayerRows<T> result{};
    if (a.saved == nullptr) {
      result.rows = passing[wanted % 2];
      result.pitch = row_pitch<T>(a.layers[wanted].out_channels());
    } else {
      Arena saved{static_cast<char*>(a.saved)};
      for (int64_t i = 0; i <= wanted; ++i)
        result = take_layer_rows<T>(saved, a.layers[i], a.layers[i].out_rows, i == a.depth - 1);
      const int64_t first_row =
          samples == a.batch ? 0 : first * (a.layers[wanted].out_rows / a.batch);
      result.rows += first_row * result.pitch;
      if (result.slopes != nullptr) result.slopes += first_row * result.slope_pitch;
    }
    if (is_last) result.rows = output;
    return result;
  }

  LinkedRows<T> input_of(int64_t i) const {
    const StackLayer& layer = a.layers[i];
    // Where the input is rows, the first layer's links are those of every sample.
    const bool links_of_all = i == 0 && a.input_is_rows && samples < a.batch;
    const int64_t first_row = links_of_all ? first * (layer.out_rows / a.batch) : 0;
    return {i == 0 ? input : rows_of(i - 1).rows,
            row_pitch<T>(layer.in_channels),
            0,
            plan.zeros,
            layer.links + first_row,
            layer.link_pitch};
  }

  void stage_input() const {
    const int64_t channels = a.layers[0].in_channels;
    if (a.input_is_rows) {
      const ConstTensor as_sample{a.input.data, {0, a.input.stride[1], a.input.stride[0]}};
      rows_from<S>(as_sample, 0, 1, channels, a.layers[0].in_rows, input);
    } else {
      rows_from<S>(a.input, first, samples, channels, a.length, input);
    }
  }

  // To the rows of a layer's result.
  FinishRows<T> finish(int64_t i) const {
    return {a.layers[i], input_of(i), plan.packed[i].bias, rows_of(i)};
  }

  template <class Finish>
  void run_layer(int64_t i, const Finish& finish_tile) const {
    const StackLayer current = layer(i);
    const PackedLayer<T>& packed = plan.packed[i];
    if (current.multiply_first())
      multiply_then_gather(current, input_of(i), packed.weight, products, finish_tile);
    else if (current.is_filtered())
      multiply_filtered(current, input_of(i), packed.weight, differences, products, finish_tile);
    else
      multiply_rows(input_of(i), current.out_rows, packed.weight, 1, finish_tile);
  }

  void forward_before_last() const {
    stage_input();
    for (int64_t i = 0; i + 1 < a.depth; ++i) run_layer(i, finish(i));
  }

  void forward() const {
    forward_before_last();
    run_layer(a.depth - 1, finish(a.depth - 1));
  }
};

// Calls body(group) for each group. With one group its layers are cut for the threads instead.
template <class S, class Body>
CONVLM_INLINE void for_groups(const StackArguments& a, const Body& body) {
  constexpr int64_t kWork = 1 << 20;  // always worth a thread
  parallel_jobs(divide_up(a.batch, larger(1, a.group)), kWork, body);
}

template <class S>
struct StackForward {
  static void run(const StackArguments& a) {
    const StackPlan<Compute<S>> plan = plan_stack<S>(a, false);
    for_groups<S>(a, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        StackGroup<S> group(a, plan, g);
        lay_out(Slot::stack_group, [&](Arena& arena) { group.take(arena); });
        group.forward();
        rows_to(group.output, group.first, group.samples, group.last().out_channels(), a.out_length,
                static_cast<S*>(a.output));
      }
    });
  }
};
