// The components of the input for fast filtering: its positions are cut into the phases of a tile,
// and the phases are added up.

template <class F>
struct InputTransform {
  int64_t phase_pitch;   // elements of one phase, or of one stream
  int64_t row_elements;  // of a row of positions before it is cut into phases, 0 without
  int64_t pitch;         // of a channel's components

  // How many elements of scratch the streams of one channel take.
  int64_t elements(const FastTiling<F>& t, bool whole_blocks) const {
    return row_elements + (whole_blocks ? F::kOutputs : t.streams) * phase_pitch;
  }
};

template <class F>
InputTransform<F> plan_input(const FastTiling<F>& t, const Stretches<F>& stretches, int lanes) {
  InputTransform<F> plan{};
  plan.pitch = staged_pitch(stretches.max_tiles, lanes);
  if (!stretches.whole_blocks) {
    plan.phase_pitch = plan.pitch;
    return plan;
  }
  const int64_t width = plan.pitch + (t.streams - 1) / F::kOutputs * t.dilation;
  const int64_t run = divide_up(width, t.dilation) * t.dilation;
  plan.phase_pitch = staged_pitch(run + lanes, lanes);
  plan.row_elements = F::kOutputs * divide_up(run + lanes, lanes) * lanes;
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

template <int PHASES, int DILATION, class T>
void split_phases_in_registers(const T* row, int64_t width, T* out, int64_t pitch) {
  constexpr int W = kLanes<T>;
  for (int64_t i = 0; i < width; i += W) {
    Vector<T> v[PHASES];
#pragma GCC unroll 4
    for (int a = 0; a < PHASES; ++a) v[a] = load(row + i * PHASES + a * W);
    separate_phases<PHASES, DILATION, T>(v);
#pragma GCC unroll 4
    for (int a = 0; a < PHASES; ++a) store(out + a * pitch + i, v[a]);
  }
}

// Cuts a row of positions into its phases: out[a][b * dilation + i] = row[(b * PHASES + a) *
// dilation + i]. Reads and writes up to a vector for each phase too much.
template <int PHASES, class T>
void split_phases(const T* row, int64_t dilation, int64_t width, T* out, int64_t pitch) {
  constexpr int W = kLanes<T>;
  if (dilation == 1) return split_phases_in_registers<PHASES, 1>(row, width, out, pitch);
  if constexpr (W > 2)
    if (dilation == 2) return split_phases_in_registers<PHASES, 2>(row, width, out, pitch);
  if constexpr (W > 4)
    if (dilation == 4) return split_phases_in_registers<PHASES, 4>(row, width, out, pitch);
  if constexpr (W > 8)
    if (dilation == 8) return split_phases_in_registers<PHASES, 8>(row, width, out, pitch);
  // Every run in whole vectors; what is too much is overwritten by the next.
  for (int a = 0; a < PHASES; ++a)
    for (int64_t start = 0; start < width; start += dilation)
      for (int64_t i = 0; i < dilation; i += W)
        store(out + a * pitch + start + i, load(row + start * PHASES + a * dilation + i));
}

template <class F, int TAPS, class T>
CONVLM_INLINE void transform_group(const FastTiling<F>& t, const T* const* stream, int64_t group,
                                   int64_t tiles, T* out, int64_t slot_pitch) {
  constexpr int W = kLanes<T>;
  constexpr int kValues = F::kOutputs + TAPS - 1;
  constexpr auto& matrix = F::kInput[TAPS - F::kFewestTaps];
  T* component[F::kComponents];
  for (int j = 0; j < F::kComponents; ++j)
    component[j] = out + (t.first_slot[j] + group) * slot_pitch;
  for (int64_t i = 0; i < tiles; i += W) {
    Vector<T> z[kValues];
#pragma GCC unroll 8
    for (int k = 0; k < kValues; ++k) z[k] = load(stream[k] + i);
#pragma GCC unroll 8
    for (int j = 0; j < F::kComponents; ++j) {
      if (!uses_component<F>(TAPS, j)) continue;
      Vector<T> sum{};
      bool first = true;
#pragma GCC unroll 8
      for (int k = 0; k < kValues; ++k) {
        if (matrix[j][k] == 0) continue;
        sum = first ? matrix[j][k] * z[k] : sum + matrix[j][k] * z[k];
        first = false;
      }
      store(component[j] + i, sum);
    }
  }
}

// The components of one channel for one stretch of tiles: out[slot * slot_pitch + tile].
// `in` points to the channel, `first_tap` is the position that the first tap of output 0 reads.
template <class F, class S>
void transform_input(const FastTiling<F>& t, const InputTransform<F>& plan, const Stretch& s,
                     bool whole_blocks, const S* in, int64_t position_stride, int64_t length,
                     int64_t first_tap, Compute<S>* streams, Compute<S>* out, int64_t slot_pitch) {
  using T = Compute<S>;
  constexpr int m = F::kOutputs;
  const int64_t first = s.first_output + first_tap;
  T* phases = streams + plan.row_elements;
  const T* source = phases;
  int64_t source_pitch = plan.phase_pitch;
  const T* in_memory = position_stride == 1 ? in_place(in) : nullptr;
  if (whole_blocks) {
    const int64_t width = s.tiles + (t.streams - 1) / m * t.dilation;
    const T* row = streams;
    if (in_memory != nullptr && first >= 0 && first + plan.row_elements <= length)
      row = in_memory + first;
    else
      stage_row(in, position_stride, length, first, 1, streams, plan.row_elements);
    split_phases<m>(row, t.dilation, width, phases, plan.phase_pitch);
  } else if (in_memory != nullptr && first >= 0 &&
             first + (t.streams - 1) * t.dilation + plan.pitch <= length) {
    source = in_memory + first;
    source_pitch = t.dilation;
  } else {
    for (int64_t k = 0; k < t.streams; ++k)
      stage_row(in, position_stride, length, first + k * t.dilation, 1,
                phases + k * plan.phase_pitch, s.tiles);
  }
  for (int64_t group = 0; group < t.groups; ++group) {
    const T* stream[F::kOutputs + kGroupTaps - 1];
    const int64_t taps = t.taps_of(group);
    for (int64_t k = 0; k < m + taps - 1; ++k) {
      const int64_t index = group * kGroupTaps + k;
      stream[k] = whole_blocks ? phases + index % m * plan.phase_pitch + index / m * t.dilation
                               : source + index * source_pitch;
    }
    if (taps == 3)
      transform_group<F, 3>(t, stream, group, s.tiles, out, slot_pitch);
    else if constexpr (F::kFewestTaps == 1) {
      if (taps == 2)
        transform_group<F, 2>(t, stream, group, s.tiles, out, slot_pitch);
      else
        transform_group<F, 1>(t, stream, group, s.tiles, out, slot_pitch);
    }
  }
}
