// Fast filtering: some outputs of a short filter with fewer products than a direct sum takes (Toom
// and Cook; as F(outputs, taps) in S. Winograd, "Arithmetic Complexity of Computations", 1980).
// Both the inputs and the weights are turned into components, components of a kind are multiplied
// and summed over channels, and the sums are turned into outputs. The gradient of the weights is
// the same scheme transposed: grad_output takes the way of the outputs back, the sums that of the
// weights.
//
// A tile is the outputs t, t + d, t + 2 d, ..., so dilation d costs nothing. Longer filters are
// groups of up to three taps, whose components add up before the outputs are made.
//
// Numbers: a direct sum errs by a share of sum |weight * input|, this one by a share of
// max |weight| * max |input|. The products behind an output of F(2, r) read no input that the
// output itself does not read; those of F(4, r) read others of the tile's. Where any result is
// infinite or NaN the caller falls back to the direct sum, which then decides.

template <int OUTPUTS>
struct FastFilter;

// kInput[taps - 1][component][value], kWeight[taps - 1][component][tap],
// kOutput[component][output]. A component without weights is not used at all.
template <>
struct FastFilter<2> {
  static constexpr int kOutputs = 2, kComponents = 4;
  static constexpr float kInput[3][4][4] = {{{1}, {}, {}, {0, 1}},
                                            {{1, -1}, {0, 1}, {}, {0, -1, 1}},
                                            {{1, 0, -1}, {0, 1, 1}, {0, -1, 1}, {0, -1, 0, 1}}};
  static constexpr float kWeight[3][4][3] = {
      {{1}, {}, {}, {1}},
      {{1}, {1, 1}, {}, {0, 1}},
      {{1}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}}};
  static constexpr float kOutput[4][2] = {{1, 0}, {1, 1}, {1, -1}, {0, 1}};
};

template <>
struct FastFilter<4> {
  static constexpr int kOutputs = 4, kComponents = 6;
  static constexpr float kInput[3][6][6] = {
      {{1, 0, -1}, {0, 1, 1}, {0, -1, 1}, {}, {}, {0, -1, 0, 1}},
      {{2, -1, -2, 1}, {0, -2, -1, 1}, {0, 2, -3, 1}, {0, -1, 0, 1}, {}, {0, 2, -1, -2, 1}},
      {{4, 0, -5, 0, 1},
       {0, -4, -4, 1, 1},
       {0, 4, -4, -1, 1},
       {0, -2, -1, 2, 1},
       {0, 2, -1, -2, 1},
       {0, 4, 0, -5, 0, 1}}};
  static constexpr float kWeight[3][6][3] = {
      {{1}, {1 / 2.f}, {1 / 2.f}, {}, {}, {1}},
      {{1 / 2.f}, {-1 / 2.f, -1 / 2.f}, {-1 / 6.f, 1 / 6.f}, {1 / 6.f, 1 / 3.f}, {}, {0, 1}},
      {{1 / 4.f},
       {-1 / 6.f, -1 / 6.f, -1 / 6.f},
       {-1 / 6.f, 1 / 6.f, -1 / 6.f},
       {1 / 24.f, 1 / 12.f, 1 / 6.f},
       {1 / 24.f, -1 / 12.f, 1 / 6.f},
       {0, 0, 1}}};
  static constexpr float kOutput[6][4] = {{1, 0, 0, 0}, {1, 1, 1, 1},   {1, -1, 1, -1},
                                          {1, 2, 4, 8}, {1, -2, 4, -8}, {0, 0, 0, 1}};
};

constexpr int kGroupTaps = 3;

template <class F>
constexpr bool uses_component(int64_t taps, int component) {
  const float* w = F::kWeight[taps - 1][component];
  return w[0] != 0 || w[1] != 0 || w[2] != 0;
}

// How a filter is cut into groups, and an axis of outputs into tiles.
// A slot is one component of one group: slots of a component lie together.
template <class F>
struct FastTiling {
  static constexpr int64_t m = F::kOutputs;
  int64_t outputs, taps, dilation;
  int64_t groups, last_taps;  // taps of the last group; all others have kGroupTaps
  int64_t streams;            // input values that one tile reads
  int64_t tiles;              // of one sample
  int64_t slots, first_slot[F::kComponents + 1];

  FastTiling(int64_t outputs, int64_t taps, int64_t dilation)
      : outputs(outputs), taps(taps), dilation(dilation) {
    groups = divide_up(taps, kGroupTaps);
    last_taps = taps - (groups - 1) * kGroupTaps;
    streams = (groups - 1) * kGroupTaps + m + last_taps - 1;
    tiles = outputs / (m * dilation) * dilation + smaller(dilation, outputs % (m * dilation));
    slots = 0;
    for (int j = 0; j < F::kComponents; ++j) {
      first_slot[j] = slots;
      slots += groups_of(j);
    }
    first_slot[F::kComponents] = slots;
  }
  int64_t taps_of(int64_t group) const { return group < groups - 1 ? kGroupTaps : last_taps; }
  int64_t groups_of(int component) const {
    return groups - (uses_component<F>(last_taps, component) ? 0 : 1);
  }
};

// A stretch of tiles that is worked on at once: whole blocks of m * dilation outputs, or, where the
// dilation is long, a part of one block. Tile i gives the outputs first_output + i / period * m *
// period + i % period + a * (whole blocks: period, else: run_output) for a < m.
struct Stretch {
  int64_t tiles, period;
  int64_t runs;  // pieces of the sample's outputs
  int64_t first_output, run_output;
  int64_t positions;  // outputs that may be written, from the first on
};

template <class F>
struct Stretches {
  static constexpr int64_t m = F::kOutputs;
  bool whole_blocks;
  int64_t blocks;       // of one stretch
  int64_t parts, part;  // of one block, and their tiles
  int64_t count, max_tiles;

  // Runs of two vectors and more are read and written where they are. All stretches but the last
  // are whole vectors where that is possible.
  Stretches(const FastTiling<F>& t, int64_t wanted_tiles, int lanes) {
    const int64_t all_blocks = divide_up(t.outputs, m * t.dilation);
    const int64_t width = smaller(t.dilation, t.tiles);
    whole_blocks = t.dilation < 2 * lanes;
    blocks = whole_blocks ? smaller(all_blocks, wanted_tiles / t.dilation) : 1;
    part = whole_blocks
               ? width
               : divide_up(divide_up(width, divide_up(width, wanted_tiles)), lanes) * lanes;
    parts = divide_up(width, part);
    // The last block may be so short that some of its parts would be empty.
    const int64_t last = t.tiles - (all_blocks - 1) * t.dilation;
    count = whole_blocks ? divide_up(all_blocks, blocks)
                         : (all_blocks - 1) * parts + divide_up(last, part);
    max_tiles = smaller(whole_blocks ? blocks * t.dilation : part, t.tiles);
  }

  Stretch at(const FastTiling<F>& t, int64_t index) const {
    Stretch s{};
    if (whole_blocks) {
      const int64_t first = index * blocks * t.dilation;
      s.tiles = smaller(blocks * t.dilation, t.tiles - first);
      s.period = t.dilation;
      s.runs = 1;
      s.first_output = first * m;
      s.positions = smaller(blocks * m * t.dilation, t.outputs - s.first_output);
    } else {
      const int64_t first_tile = index / parts * t.dilation + index % parts * part;
      const int64_t block_end = smaller(t.tiles, (index / parts + 1) * t.dilation);
      s.tiles = smaller(part, block_end - first_tile);
      s.period = s.tiles;
      s.runs = m;
      s.first_output = index / parts * m * t.dilation + index % parts * part;
      s.run_output = t.dilation;
      s.positions = t.outputs - s.first_output;
    }
    return s;
  }
};

// Whether a slot of a stretch reads nothing but padding; `first` is what the first tap of the first
// output reads.
template <class F>
bool reads_padding(const FastTiling<F>& t, const Stretch& s, int component, int64_t group,
                   int64_t first, int64_t length) {
  if (s.runs == 1) return false;
  const auto& matrix = F::kInput[t.taps_of(group) - 1][component];
  for (int64_t k = 0; k < F::kOutputs + kGroupTaps - 1; ++k) {
    const int64_t position = first + (group * kGroupTaps + k) * t.dilation;
    if (matrix[k] != 0 && position < length && position + s.tiles > 0) return false;
  }
  return true;
}
