// The components of the input for fast filtering: values a dilation apart make a tile, and are
// added up. Where the dilation is a power of two that fits into a vector, a few vectors of
// positions are cut into their phases in registers; where it is two vectors or more, the values are
// read where they are; else a row is cut into phases in memory first.

template <class T>
constexpr bool cut_in_registers(int64_t dilation) {
  return dilation <= kLanes<T> && (dilation & (dilation - 1)) == 0;
}

// The phases of a row are copied apart, which is dear.
template <class T, class F>
bool copies_phases(const FastTiling<F>& t, const Stretches<F>& stretches) {
  return stretches.whole_blocks && !cut_in_registers<T>(t.dilation);
}

template <class F>
struct InputTransform {
  int64_t phase_pitch;   // elements of one phase, or of one stream, 0 without
  int64_t row_elements;  // of a row of positions before it is cut into phases, 0 without

  // How many elements of scratch one channel takes.
  int64_t elements(const FastTiling<F>& t, bool whole_blocks) const {
    return row_elements + (whole_blocks ? F::kOutputs : t.streams) * phase_pitch;
  }
};

// How many positions the tiles of a stretch of whole blocks read, cut in registers.
template <class F>
int64_t positions_read(const FastTiling<F>& t, int64_t tiles, int lanes) {
  // A group of several taps takes the phases of the next tile too, the last but one perhaps further
  // than the last.
  const int64_t last = (t.groups - 1) * kGroupTaps + (t.last_taps > 1 ? F::kOutputs : 0);
  const int64_t before = t.groups > 1 ? (t.groups - 2) * kGroupTaps + F::kOutputs : 0;
  return F::kOutputs * divide_up(tiles, lanes) * lanes + larger(last, before) * t.dilation;
}

template <class F, class T>
InputTransform<F> plan_input(const FastTiling<F>& t, const Stretches<F>& stretches) {
  constexpr int W = kLanes<T>;
  InputTransform<F> plan{};
  if (!stretches.whole_blocks) {
    plan.phase_pitch = staged_pitch(stretches.max_tiles, W);
  } else if (cut_in_registers<T>(t.dilation)) {
    plan.row_elements = positions_read(t, stretches.max_tiles, W);
  } else {
    const int64_t width =
        divide_up(stretches.max_tiles, W) * W + (t.streams - 1) / F::kOutputs * t.dilation;
    const int64_t run = divide_up(width, t.dilation) * t.dilation;
    plan.phase_pitch = staged_pitch(run + W, W);
    plan.row_elements = F::kOutputs * divide_up(run + W, W) * W;
  }
  return plan;
}

// Two vectors of blocks of DILATION positions to the even blocks and the odd ones.
template <int DILATION, class T, int... L>
CONVLM_INLINE void separate(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, L...>) {
  const Vector<T> first = a, second = b;
  a = __builtin_shufflevector(first, second, (L / DILATION * 2 * DILATION + L % DILATION)...);
  b = __builtin_shufflevector(first, second,
                              (L / DILATION * 2 * DILATION + DILATION + L % DILATION)...);
}

template <int PHASES, int DILATION, class T>
CONVLM_INLINE void separate_phases(Vector<T>* v) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  if constexpr (DILATION == kLanes<T>) return;
  if constexpr (PHASES == 4) {
    // Phase pairs first, where a pair is shorter than a vector; then the phases of each pair.
    if constexpr (2 * DILATION < kLanes<T>) {
      separate<2 * DILATION, T>(v[0], v[1], lanes);
      separate<2 * DILATION, T>(v[2], v[3], lanes);
    }
    const Vector<T> second = v[1];
    v[1] = v[2];
    v[2] = second;
    separate<DILATION, T>(v[0], v[1], lanes);
    separate<DILATION, T>(v[2], v[3], lanes);
  } else {
    separate<DILATION, T>(v[0], v[1], lanes);
  }
}

// The way back.
template <int DILATION, class T, int... L>
CONVLM_INLINE void interleave(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, L...>) {
  constexpr int W = kLanes<T>;
  const Vector<T> first = a, second = b;
  a = __builtin_shufflevector(
      first, second, (L / (2 * DILATION) * DILATION + L % DILATION + L / DILATION % 2 * W)...);
  b = __builtin_shufflevector(
      first, second,
      ((L + W) / (2 * DILATION) * DILATION + L % DILATION + L / DILATION % 2 * W)...);
}

template <int PHASES, int DILATION, class T>
CONVLM_INLINE void merge_phases(Vector<T>* v) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  if constexpr (DILATION == kLanes<T>) return;
  interleave<DILATION, T>(v[0], v[1], lanes);
  if constexpr (PHASES == 4) {
    interleave<DILATION, T>(v[2], v[3], lanes);
    const Vector<T> second = v[1];
    v[1] = v[2];
    v[2] = second;
    if constexpr (2 * DILATION < kLanes<T>) {
      interleave<2 * DILATION, T>(v[0], v[1], lanes);
      interleave<2 * DILATION, T>(v[2], v[3], lanes);
    }
  }
}

// Cuts a row of positions into its phases: out[a][b * dilation + i] = row[(b * PHASES + a) *
// dilation + i]. Reads and writes up to a vector for each phase too much.
template <int PHASES, class T>
void split_phases(const T* row, int64_t dilation, int64_t width, T* out, int64_t pitch) {
  // Every run in whole vectors; what is too much is overwritten by the next.
  for (int a = 0; a < PHASES; ++a)
    for (int64_t start = 0; start < width; start += dilation)
      for (int64_t i = 0; i < dilation; i += kLanes<T>)
        store(out + a * pitch + start + i, load(row + start * PHASES + a * dilation + i));
}

// Two ways to the values of a vector of tiles: each in a stream of its own, or between the others.
template <class T>
struct Streams {
  const T* const* stream;

  template <int VALUES>
  CONVLM_INLINE void take(int64_t tile, Vector<T>* value) const {
#pragma GCC unroll 8
    for (int k = 0; k < VALUES; ++k) value[k] = load(stream[k] + tile);
  }
};

template <int PHASES, int DILATION, class T>
struct Interleaved {
  const T* row;

  template <int VALUES>
  CONVLM_INLINE void take(int64_t tile, Vector<T>* value) const {
#pragma GCC unroll 2
    for (int first = 0; first < VALUES; first += PHASES) {
      Vector<T> phase[PHASES];
#pragma GCC unroll 4
      for (int a = 0; a < PHASES; ++a)
        phase[a] = load(row + tile * PHASES + first * DILATION + a * kLanes<T>);
      separate_phases<PHASES, DILATION, T>(phase);
#pragma GCC unroll 4
      for (int a = 0; a < PHASES; ++a)
        if (first + a < VALUES) value[first + a] = phase[a];
    }
  }
};

template <class F, int TAPS, class T, class Values>
void transform_group(const FastTiling<F>& t, const Values& values, int64_t group, int64_t tiles,
                     T* out, int64_t slot_pitch) {
  constexpr int kValues = F::kOutputs + TAPS - 1;
  constexpr auto& matrix = F::kInput[TAPS - 1];
  T* component[F::kComponents];
  for (int j = 0; j < F::kComponents; ++j)
    component[j] = out + (t.first_slot[j] + group) * slot_pitch;
  for (int64_t i = 0; i < tiles; i += kLanes<T>) {
    Vector<T> value[kValues];
    values.template take<kValues>(i, value);
#pragma GCC unroll 8
    for (int j = 0; j < F::kComponents; ++j) {
      if (!uses_component<F>(TAPS, j)) continue;
      Vector<T> sum{};
      bool first = true;
#pragma GCC unroll 8
      for (int k = 0; k < kValues; ++k) {
        if (matrix[j][k] == 0) continue;
        sum = first ? matrix[j][k] * value[k] : sum + matrix[j][k] * value[k];
        first = false;
      }
      store(component[j] + i, sum);
    }
  }
}

template <class F, class T, class Values>
void transform_group(const FastTiling<F>& t, const Values& values, int64_t group, int64_t tiles,
                     T* out, int64_t slot_pitch) {
  const int64_t taps = t.taps_of(group);
  if (taps == 3) return transform_group<F, 3>(t, values, group, tiles, out, slot_pitch);
  if (taps == 2) return transform_group<F, 2>(t, values, group, tiles, out, slot_pitch);
  transform_group<F, 1>(t, values, group, tiles, out, slot_pitch);
}

template <int DILATION, class F, class T>
void transform_row(const FastTiling<F>& t, const T* row, int64_t tiles, T* out,
                   int64_t slot_pitch) {
  if constexpr (DILATION > 1)
    if (t.dilation < DILATION) return transform_row<DILATION / 2>(t, row, tiles, out, slot_pitch);
  for (int64_t group = 0; group < t.groups; ++group) {
    const Interleaved<F::kOutputs, DILATION, T> values{row + group * kGroupTaps * DILATION};
    transform_group(t, values, group, tiles, out, slot_pitch);
  }
}

// The components of one channel for one stretch of tiles: out[slot * slot_pitch + tile], in whole
// vectors of tiles. `in` points to the channel, `first_tap` is the position that the first tap of
// output 0 reads.
template <class F, class S>
void transform_input(const FastTiling<F>& t, const InputTransform<F>& plan, const Stretch& s,
                     bool whole_blocks, const S* in, int64_t position_stride, int64_t length,
                     int64_t first_tap, Compute<S>* scratch, Compute<S>* out, int64_t slot_pitch) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int m = F::kOutputs;
  const T* in_memory = position_stride == 1 ? in_place(in) : nullptr;
  const auto row = [&](int64_t first, int64_t width, T* staged) {
    if (in_memory != nullptr && first >= 0 && first + width <= length) return in_memory + first;
    stage_row(in, position_stride, length, first, 1, staged, width);
    return static_cast<const T*>(staged);
  };
  const int64_t first = s.first_output + first_tap;
  if (whole_blocks && cut_in_registers<T>(t.dilation))
    return transform_row<W>(t, row(first, positions_read(t, s.tiles, W), scratch), s.tiles, out,
                            slot_pitch);
  T* phases = scratch + plan.row_elements;
  if (whole_blocks)
    split_phases<m>(row(first, plan.row_elements, scratch), t.dilation,
                    divide_up(s.tiles, W) * W + (t.streams - 1) / m * t.dilation, phases,
                    plan.phase_pitch);
  for (int64_t group = 0; group < t.groups; ++group) {
    const T* stream[m + kGroupTaps - 1];
    for (int64_t k = 0; k < m + t.taps_of(group) - 1; ++k) {
      const int64_t index = group * kGroupTaps + k;
      stream[k] = whole_blocks ? phases + index % m * plan.phase_pitch + index / m * t.dilation
                               : row(first + index * t.dilation, divide_up(s.tiles, W) * W,
                                     phases + index * plan.phase_pitch);
    }
    transform_group(t, Streams<T>{stream}, group, s.tiles, out, slot_pitch);
  }
}

// ---- what is asked for ahead ----

// What a stretch reads anew of rows, the first of which has at `in` what the first tap of output 0
// reads.
template <class F, class S>
LinesAhead input_lines(const FastTiling<F>& t, const Stretch& s, const S* in, int64_t rows,
                       int64_t row_pitch) {
  in += s.first_output;
  if (s.runs == 1) return {in, rows, row_pitch, 1, 0, F::kOutputs * s.tiles};
  // Where a stretch is a whole block, the other values are those of the block before.
  const int64_t values = s.tiles < t.dilation ? t.streams : F::kOutputs;
  in += (t.streams - values) * t.dilation;
  return {in, rows, row_pitch, values, t.dilation, s.tiles};
}

// The outputs of the tiles from `first` on of rows that begin at `out`.
template <class F, class S>
LinesAhead output_lines(const Stretch& s, int64_t first, int64_t tiles, const S* out, int64_t rows,
                        int64_t row_pitch) {
  const bool apart = s.runs > 1;
  return {out + s.first_output + (apart ? 1 : F::kOutputs) * first,
          rows,
          row_pitch,
          apart ? F::kOutputs : 1,
          s.run_output,
          apart ? tiles : F::kOutputs * tiles};
}
