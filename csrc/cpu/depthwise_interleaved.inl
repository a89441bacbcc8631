// grad_input of few channels with a stride: each class of positions is a correlation of its own,
// whose outputs lie a stride apart. They are computed side by side and stored in their turn.

// Puts the offsets of a part's products next to each other: in `offset`, for both places, in the
// order of parts, channels and taps.
template <class S>
void list_by_parts(const Correlation<S>* parts, int64_t count, SlidingInput& input,
                   int64_t* offset) {
  const int64_t* const by_channels = input.offset;
  input.offset = offset;
  for (int64_t place = 0; place < 2; ++place)
    for (int64_t i = 0, first = 0; i < count; first += parts[i++].taps)
      for (int64_t c = 0; c < input.channels; ++c)
        for (int64_t j = 0; j < parts[i].taps; ++j)
          *offset++ = by_channels[place * input.products() + c * input.taps + first + j];
}

// `parts` are those of one grad_input that have taps, of one channel of x per group. A part of
// several rows stands for as many classes.
template <class S>
void correlate_interleaved(const Correlation<S>* parts, int64_t count, S* grad_input) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kTile = 2048;  // positions, which with their strips stay in the L1 cache
  const Correlation<S>& p = parts[0];
  const int64_t step = p.out_step, length = p.out_group;
  // The inputs of all parts are staged together: their taps follow each other in memory.
  Correlation<S> all = p;
  int64_t products = 0;
  for (int64_t i = 1; i < count; ++i) all.taps += parts[i].taps;
  for (int64_t i = 0; i < count; ++i) {
    all.outputs = larger(all.outputs, parts[i].outputs);
    products += parts[i].rows * parts[i].products();
  }
  const int64_t numbers = sliding_input_numbers(all);
  int64_t* memory = scratch_numbers(Slot::plan, numbers + 2 * all.products());
  SlidingInput input = sliding_input(all, memory);
  list_by_parts(parts, count, input, memory + numbers);
  const int64_t outputs = divide_up(length, step);
  const int64_t tile = larger(W, kTile / step / W * W), pitch = staged_pitch(tile, W);
  const int64_t tiles = divide_up(outputs, tile);
  const int64_t blocks = divide_up(outputs, 16 * 1024);  // of a row, for threads to share
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * products));
  T* weights_end = weights;
  for (int64_t i = 0; i < count; ++i) weights_end = pack_all_rows(parts[i], weights_end);
  parallel_jobs(
      p.batch * p.groups * blocks, products * divide_up(outputs, blocks),
      [&](int64_t begin, int64_t end) {
        T* strips = static_cast<T*>(scratch(Slot::tile, sizeof(T) * step * pitch));
        clear(strips, step * pitch);  // of classes without taps
        RowBlock row(p.groups, blocks, begin);
        for (int64_t job = begin; job < end; ++job, ++row) {
          for (int64_t t = row.first(tiles); t < row.last(tiles); ++t) {
            const int64_t first = t * tile, last = smaller(outputs, first + tile);
            for_each_stretch(
                input, input_of(p, row.sample, row.group), first, smaller(last, all.outputs),
                [&](auto* in, const int64_t* offset, int64_t q, int64_t positions) {
                  const T* weight = weights;
                  for (int64_t i = 0; i < count; ++i) {
                    const Correlation<S>& part = parts[i];
                    // They differ by no more than one.
                    const int64_t part_outputs = smaller(positions, part.outputs - q);
                    T* out = strips + (part.out - grad_input) * pitch + q - first;
                    for (int64_t m = 0; m < part.rows; ++m, out += pitch)
                      correlate_row(in, weight + (row.group * part.rows + m) * part.products(),
                                    offset, part.products(), T(0), Activation::none, part_outputs,
                                    out);
                    offset += part.products();
                    weight += p.groups * part.rows * part.products();
                  }
                });
            interleave(
                strips, pitch, step, smaller(length - first * step, tile * step),
                grad_input + row.sample * p.out_batch + row.group * p.out_group + first * step);
          }
        }
      });
}
