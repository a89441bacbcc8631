// Samples too short to fill vectors of positions are joined: the outputs of several, one sample
// behind the other, make a tile, in which each product (input channel and tap) has a row of the
// inputs that its outputs read.

// Outputs of one sample that are next to each other in a tile.
struct Run {
  int64_t sample, first, count;
  int64_t lane;  // of the first, in the tile
};

// The width of a tile that is multiplied: with a few channels it is staged in the L1 cache, with
// hundreds in the L2.
constexpr int64_t kJoinedVectors = 5 * kMaxVectors;

// Those of the joined outputs [begin, end), where each sample has `outputs`.
struct Runs {
  static constexpr int64_t kMost = 256;
  static_assert(kJoinedVectors * kLanes<float> <= kMost);
  int64_t count = 0;
  Run run[kMost];

  Runs(int64_t outputs, int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += run[count++].count) {
      const int64_t first = at % outputs;
      run[count] = {at / outputs, first, smaller(outputs - first, end - at), at - begin};
    }
  }
  const Run* begin() const { return run; }
  const Run* end() const { return run + count; }
};

// out[r * out_pitch + i] = row(r)[first + i] for r < rows, i < count.
template <class RowAt, class Out>
CONVLM_INLINE void copy_rows(const RowAt& row, int64_t rows, int64_t first, int64_t count, Out* out,
                             int64_t out_pitch) {
  constexpr int W = kLanes<typename decltype(row(0))::T>;
  if (count < W) {
    const int rest = static_cast<int>(count);
    for (int64_t r = 0; r < rows; ++r)
      store_partial(out + r * out_pitch, row(r).template partial<1>(first, rest), rest);
    return;
  }
  // The last vector overlaps the one before it: writing twice is cheaper than a partial one.
  for (int64_t r = 0; r < rows; ++r, out += out_pitch) {
    const auto source = row(r);
    for (int64_t i = 0; i < count; i += W) {
      const int64_t start = smaller(i, count - W);
      store(out + start, source.template vector<1>(first + start));
      __asm__ volatile("");  // or the compiler calls memcpy, which costs more than a few vectors
    }
  }
}

// What a tile is made of: a tensor, and what each output reads of it.
template <class S>
struct JoinedInput {
  const S* in;
  int64_t in_batch, in_channel, in_position;  // strides
  int64_t channels, length, outputs, in_step, taps;
  const int64_t* tap_offset;
  Staging sample;  // where outputs next to each other read what is not: how to stage one sample

  bool plain() const { return in_step * in_position == 1; }
};

// tile[(channel * taps + tap) * pitch + lane], with pairs of channels for pairs.
template <class T, class S>
void stage_joined(const JoinedInput<S>& p, const Runs& runs, T* tile, int64_t pitch) {
  const int64_t channels = divide_up(p.channels, kDepth<T>), channel_pitch = p.taps * pitch;
  for (const Run& run : runs) {
    const S* in = p.in + run.sample * p.in_batch;
    T* out = tile + run.lane;
    if (!p.plain()) {
      T* staged =
          static_cast<T*>(scratch(Slot::staged, sizeof(T) * channels * p.sample.channel_pitch()));
      stage(p.sample, in, p.channels, p.in_channel, p.in_position, p.length, run.first * p.in_step,
            staged);
      for (int64_t c = 0; c < channels; ++c, staged += p.sample.channel_pitch())
        copy_rows([&](int64_t j) { return Row<T>{staged + p.sample.tap_start[j]}; }, p.taps, 0,
                  run.count, out + c * channel_pitch, pitch);
      continue;
    }
    const OperandRows<T, S> rows{in, p.in_channel, p.channels};
    for (int64_t j = 0; j < p.taps; ++j, out += pitch) {
      const int64_t start = run.first + p.tap_offset[j];
      const int64_t first = smaller(run.count, larger(0, -start));
      const int64_t last = larger(first, smaller(run.count, p.length - start));
      if (first < last)
        copy_rows(rows, channels, start + first, last - first, out + first, channel_pitch);
      for (int64_t c = 0; last - first < run.count && c < channels; ++c) {
        clear(out + c * channel_pitch, first);
        clear(out + c * channel_pitch + last, run.count - last);
      }
    }
  }
}
