// Where few positions share each weight, to lay the weights out anew would cost more than all
// products. So vectors lie along the weight as it is, [channel][tap], and what an output reads is
// laid out alike: its window.

// The inputs of one group.
template <class S>
struct Windows {
  const S* in;
  int64_t in_batch, in_channel, in_position;  // strides
  int64_t channels, length, outputs, in_step, taps;
  const int64_t* tap_offset;

  int64_t products() const { return channels * taps; }

  // Where output `at` of all samples' outputs finds its first channel's first input.
  const S* start(int64_t at) const {
    return in + at / outputs * in_batch + at % outputs * in_step * in_position;
  }

  // Whether inputs lie as weights do, and none of them is padding.
  bool in_place() const {
    for (int64_t j = 0; j < taps; ++j)
      if ((tap_offset[j] - tap_offset[0]) * in_position != j || tap_offset[j] < 0 ||
          tap_offset[j] + (outputs - 1) * in_step >= length)
        return false;
    return channels == 1 || in_channel == taps;
  }

  void stage(int64_t at, Compute<S>* window) const {
    const int64_t q = at % outputs;
    const TapRange inside = taps_inside(tap_offset, taps, in_step, length, q, q + 1);
    const S* source = start(at);
    for (int64_t c = 0; c < channels; ++c, source += in_channel, window += taps) {
      for (int64_t j = 0; j < inside.first; ++j) window[j] = 0;
      for (int64_t j = inside.first; j < inside.last; ++j)
        window[j] = to_compute(source[tap_offset[j] * in_position]);
      for (int64_t j = inside.last; j < taps; ++j) window[j] = 0;
    }
  }
};
