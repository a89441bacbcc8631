// Where few positions share each weight, to lay the weights out anew would cost more than all
// products. So vectors lie along the weight as it is, [channel][tap], and what an output reads is
// laid out alike: its window.

// Whether inputs of one tap are turned into windows, many at once.
inline bool windows_are_turned(int64_t taps, int64_t outputs, int64_t in_step) {
  constexpr int64_t kFewestTurned = 4;
  return taps == 1 && in_step == 1 && outputs >= kFewestTurned;
}

// The inputs of one group.
template <class S>
struct Windows {
  const S* in;
  int64_t in_batch, in_channel, in_position;  // strides
  int64_t channels, length, outputs, in_step, taps;
  const int64_t* tap_offset;

  int64_t products() const { return channels * taps; }

  // Whether what the taps read is next to each other. Offsets are evenly spaced.
  bool lie_together() const {
    return taps == 1 || (tap_offset[1] - tap_offset[0]) * in_position == 1;
  }

  // Where output `at` of all samples' outputs finds its first channel's first input.
  const S* start(int64_t at) const {
    return in + at / outputs * in_batch + at % outputs * in_step * in_position;
  }

  // Whether inputs lie as weights do, none of them is padding, and none is to be converted.
  bool in_place() const {
    if (!std::is_same_v<S, Compute<S>>) return false;
    const bool padded =
        tap_offset[0] < 0 || tap_offset[taps - 1] + (outputs - 1) * in_step >= length;
    return !padded && lie_together() && (channels == 1 || in_channel == taps);
  }

  // The windows of `count` outputs from `first` on.
  void stage(int64_t first, int64_t count, Compute<S>* out, int64_t pitch) const {
    for (const Run& run : Runs(outputs, first, first + count)) {
      const int64_t at = run.sample * outputs + run.first;
      Compute<S>* window = out + run.lane * pitch;
      if (windows_are_turned(taps, run.count, in_step * in_position) &&
          run.first + tap_offset[0] >= 0 && run.first + run.count + tap_offset[0] <= length)
        transpose(start(at) + tap_offset[0], in_channel, channels, run.count, window, pitch);
      else
        for (int64_t i = 0; i < run.count; ++i) stage(at + i, window + i * pitch);
    }
  }

  void stage(int64_t at, Compute<S>* window) const {
    const int64_t q = at % outputs;
    const TapRange inside = taps_inside(tap_offset, taps, in_step, length, q, q + 1);
    const bool together = taps > 1 && lie_together();
    const S* source = start(at);
    for (int64_t c = 0; c < channels; ++c, source += in_channel, window += taps) {
      for (int64_t j = 0; j < inside.first; ++j) window[j] = 0;
      if (together && inside.first < inside.last)
        copy(source + tap_offset[inside.first] * in_position, inside.last - inside.first,
             window + inside.first);
      else
        for (int64_t j = inside.first; j < inside.last; ++j)
          window[j] = to_compute(source[tap_offset[j] * in_position]);
      for (int64_t j = inside.last; j < taps; ++j) window[j] = 0;
    }
  }

 private:
  CONVLM_INLINE static void copy(const S* source, int64_t count, Compute<S>* out) {
    constexpr int W = kLanes<Compute<S>>;
    if (count < W) return store_partial(out, load_partial(source, count), count);
    for (int64_t i = 0; i + W < count; i += W) {
      store(out + i, load(source + i));
      __asm__ volatile("");  // or the compiler calls memcpy, which costs more than a few vectors
    }
    store(out + count - W, load(source + count - W));
  }
};
