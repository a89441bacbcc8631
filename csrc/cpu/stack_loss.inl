// The softmax cross-entropy of a stack's result, and all gradients of its mean, in one call: the
// logits never leave the tile that made them.

template <class T>
struct FinishLosses {
  FinishRows<T> finish;
  const int64_t* target;  // of each row
  T* losses;
  T scale;       // of the gradient: one over the number of losses
  T* gradients;  // rows; null where they are not wanted

  CONVLM_INLINE void operator()(T* tile, int64_t pitch, int64_t first, int64_t count) const {
    FinishRows<T> in_place = finish;
    in_place.out.rows = tile - first * pitch;
    in_place.out.pitch = pitch;
    in_place(tile, pitch, first, count);
    Softmax<T> softmax(finish.layer.out_channels());
    for (int64_t i = 0; i < count; i += softmax.kRows)
      add(softmax, tile + i * pitch, pitch, first + i, smaller(softmax.kRows, count - i));
  }

  CONVLM_INLINE void add(Softmax<T>& softmax, T* tile, int64_t pitch, int64_t first,
                         int64_t count) const {
    for (int64_t i = 0; i < count; ++i) losses[first + i] = tile[i * pitch + target[first + i]];
    softmax.run(tile, pitch, count, gradients != nullptr);
    for (int64_t i = 0; i < count; ++i)
      losses[first + i] = softmax.log_sum[i] - (losses[first + i] - softmax.largest[i]);
    if (gradients == nullptr) return;
    const int64_t gradient_pitch = row_pitch<T>(finish.layer.out_channels());
    softmax.gradients(tile, pitch, count, target + first, scale, gradients + first * gradient_pitch,
                      gradient_pitch);
  }
};

// Of so few products that a second thread would wait longer for rows that the first has made than
// it multiplies. Measured.
inline bool is_short(const StackArguments& a) {
  constexpr int64_t kShort = 8'000'000;  // multiply-adds, forward
  int64_t products = 0;
  for (int64_t i = 0; i < a.depth; ++i) {
    const StackLayer& layer = a.layers[i];
    const int64_t rows = layer.multiply_first() ? layer.in_rows
                         : layer.is_filtered()  ? layer.filter.tiles
                                                : layer.out_rows;
    products += rows * layer.multiplied_taps() * layer.in_channels * layer.columns;
  }
  return products < kShort;
}

template <class T>
struct StackLoss {
  static void run(const StackArguments& a) {
    run_filtered(a, [&] { return run_as_linked(a); });
  }

 private:
  // Whether it stands: else nothing but losses and their mean has been written.
  static bool run_as_linked(const StackArguments& a) {
    if (a.gradient.mean != nullptr) return with_gradients(a);
    const StackPlan<T> plan = plan_stack<T>(a, false);
    for_groups<T>(a, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        StackGroup<T> group(a, plan, g);
        lay_out(Slot::stack_group, [&](Arena& arena) { group.take(arena); });
        forward(group, nullptr);
      }
    });
    return !is_filtered(a) || __builtin_isfinite(mean_of_losses(a));
  }

  static T mean_of_losses(const StackArguments& a) {
    return mean_of(static_cast<const T*>(a.losses), a.batch * a.out_length);
  }

  static bool with_gradients(StackArguments a) {
    const Alone alone(is_short(a));
    lay_out(Slot::stack_saved, [&](Arena& arena) {
      a.saved = arena.data;
      for (int64_t i = 0; i < a.depth; ++i)
        take_layer_rows<T>(arena, a.layers[i], a.layers[i].out_rows, i == a.depth - 1);
    });
    const StackPlan<T> plan = plan_stack<T>(a, true);
    StackSums<T> sums;
    lay_out(Slot::stack_sums, [&](Arena& arena) { sums.take(arena, a, 1); });
    sums.start(a);
    StackGroup<T> group(a, plan, 0);
    StackGradients<T> gradients(group, sums.layers, 0);
    lay_out(Slot::stack_group, [&](Arena& arena) {
      group.take(arena);
      gradients.take(arena);
    });
    forward(group, gradients.output());
    const T mean = mean_of_losses(a);
    *static_cast<T*>(a.gradient.mean) = mean;
    const bool finite = __builtin_isfinite(mean);
    if (is_filtered(a) && !finite) return false;
    if (a.gradient.as_step && !finite) return true;
    gradients.run(true);
    if (is_filtered(a) && !sums.are_finite()) return false;
    StackBackward<T>::write_input(a, group, gradients.input);
    finish_sums<T>(a, sums);
    return true;
  }

  static void forward(const StackGroup<T>& group, T* gradients) {
    const StackArguments& a = group.a;
    const int64_t first = group.first * a.out_length;
    group.forward_before_last();
    const FinishLosses<T> finish{group.finish(a.depth - 1), a.target + first,
                                 static_cast<T*>(a.losses) + first, T(1) / (a.batch * a.out_length),
                                 gradients};
    group.run_layer(a.depth - 1, finish);
  }
};

void stack_loss(const StackArguments& a) {
#if defined(CONVLM_DOT_BFLOAT16)
  CONVLM_DOT_BFLOAT16.stack_loss(a);
#else
  a.dtype == ScalarType::float64 ? StackLoss<double>::run(a) : StackLoss<float>::run(a);
#endif
}
