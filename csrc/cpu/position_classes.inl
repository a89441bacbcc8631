// The positions of an input, by the taps that read them.

// Position p of the input was read by output t through tap k where p + pad_left = t * stride + k *
// dilation. Positions that are a multiple of the stride apart share their taps, and neighbours
// among them read neighbouring outputs: each such class is a correlation of stride 1 of its own.
// Where a tap's output does not exist a staged zero may stand for it, so an infinite weight may
// give NaN there.
struct PositionClass {
  int64_t start;    // t for the first position, before the taps' shift
  int64_t outputs;  // how many positions there are
  int64_t first_tap, taps;

  bool like(const PositionClass& other) const {
    return start == other.start && outputs == other.outputs && taps == other.taps;
  }
};

struct PositionClasses {
  const Conv1dGeometry& g;
  int64_t count, period;  // period: how far apart the taps of a class are
  int64_t* first_tap;     // of each class, kernel_size where it has none

  // `memory` is for `count` numbers.
  PositionClasses(const Conv1dGeometry& geometry, int64_t* memory)
      : g(geometry), count(smaller(g.stride, g.length)), period(0), first_tap(memory) {
    for (int64_t i = 0; i < count; ++i) first_tap[i] = g.kernel_size;
    const int64_t before = g.stride - g.pad_left % g.stride;
    int64_t residue = 0;
    do {
      const int64_t position = (residue + before) % g.stride;
      if (position < count) first_tap[position] = period;
      residue = (residue + g.dilation) % g.stride;
      ++period;
    } while (residue != 0 && period < g.kernel_size);
  }

  PositionClass at(int64_t position) const {
    const int64_t first = first_tap[position];
    return {(position + g.pad_left) / g.stride, divide_up(g.length - position, g.stride), first,
            divide_up(g.kernel_size - first, period)};
  }

  void list_taps(const PositionClass& c, int64_t* tap_index, int64_t* tap_offset) const {
    const int64_t offset = c.start - c.first_tap * g.dilation / g.stride;
    const int64_t spacing = period * g.dilation / g.stride;
    for (int64_t i = 0; i < c.taps; ++i) {
      tap_index[i] = c.first_tap + i * period;
      tap_offset[i] = offset - i * spacing;
    }
  }
};
