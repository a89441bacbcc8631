// Copies of the input into small tiles of the compute type: the only place that knows about
// padding, storage types and strides of the input. The tiles stay in cache; nothing of the input's
// size is made.

// Every STEP-th element, from STEP vectors that lie next to each other.
template <int STEP, class S, int... L>
CONVLM_INLINE Vector<Compute<S>> load_every(const S* p, std::integer_sequence<int, L...> lanes);

// The first lanes of it, as far as they are in the first COUNT vectors.
template <int STEP, int COUNT, class S, int... L>
CONVLM_INLINE Vector<Compute<S>> gather_every(const S* p, std::integer_sequence<int, L...> lanes) {
  constexpr int W = kLanes<Compute<S>>;
  if constexpr (COUNT == 1) {
    return __builtin_shufflevector(load(p), load(p), (STEP * L < W ? STEP * L : 0)...);
  } else {
    constexpr int kBefore = (COUNT - 1) * W;
    return __builtin_shufflevector(
        gather_every<STEP, COUNT - 1>(p, lanes), load(p + kBefore),
        (STEP * L < kBefore || STEP * L >= kBefore + W ? L : W + STEP * L - kBefore)...);
  }
}

template <int STEP, class S, int... L>
CONVLM_INLINE Vector<Compute<S>> load_every(const S* p, std::integer_sequence<int, L...> lanes) {
  constexpr int W = kLanes<Compute<S>>;
  if constexpr (STEP == 1) {
    return load(p);
  } else if constexpr (STEP % 2 == 1) {
    return gather_every<STEP, STEP>(p, lanes);
  } else {
    return __builtin_shufflevector(load_every<STEP / 2>(p, lanes),
                                   load_every<STEP / 2>(p + STEP / 2 * W, lanes), (2 * L)...);
  }
}

// A row of the input, as elements of the compute type.
template <class S>
struct Row {
  using T = Compute<S>;
  static constexpr bool kStoresTwo = false;
  const S* in;

  T element(int64_t i) const { return to_compute(in[i]); }
  template <int STEP>
  CONVLM_INLINE Vector<T> vector(int64_t i) const {
    return load_every<STEP>(in + i, std::make_integer_sequence<int, kLanes<T>>{});
  }
  CONVLM_INLINE Vector<T> partial(int64_t i, int count) const {
    return load_partial(in + i, count);
  }
};

#if defined(CONVLM_DOT_BFLOAT16)
// Two rows, or one and a row of zeros.
struct PairOfRows {
  using T = Pair;
  static constexpr bool kStoresTwo = true;
  const bfloat16 *low, *high;
  bool single;  // `high` is `low` again, and stands for zeros

  Pair element(int64_t i) const { return {low[i].bits, single ? uint16_t(0) : high[i].bits}; }
  template <int STEP>
  CONVLM_INLINE Vector<Pair> vector(int64_t i) const {
    return masked(Row<bfloat16>{low}.vector<STEP>(i), Row<bfloat16>{high}.vector<STEP>(i));
  }
  CONVLM_INLINE Vector<Pair> partial(int64_t i, int count) const {
    return masked(load_partial(low + i, count), load_partial(high + i, count));
  }
  // Two vectors at once, with half the loads.
  template <int STEP, int... L>
  CONVLM_INLINE void store_two(int64_t i, Pair* out, std::integer_sequence<int, L...>) const {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes<uint16_t>>{};
    const Vector<uint16_t> a = load_every<STEP>(&low[i].bits, lanes);
    const Vector<uint16_t> b = single ? Vector<uint16_t>{} : load_every<STEP>(&high[i].bits, lanes);
    constexpr int W = kLanes<Pair>, H = kLanes<uint16_t>;
    store(out, (Vector<Pair>)__builtin_shufflevector(a, b, (L / 2 + L % 2 * H)...));
    store(out + W, (Vector<Pair>)__builtin_shufflevector(a, b, (W + L / 2 + L % 2 * H)...));
  }
  CONVLM_INLINE Vector<Pair> masked(Vector<float> a, Vector<float> b) const {
    return pair_of(a, single ? Vector<float>{} : b);
  }
};
#endif

// As many whole vectors as can be filled without reading past the last element; returns their
// length.
template <int STEP, class Source>
CONVLM_INLINE int64_t stage_vectors(Source in, int64_t first, int64_t count,
                                    typename Source::T* out) {
  constexpr int W = kLanes<typename Source::T>;
  int64_t i = 0;
  if constexpr (Source::kStoresTwo)
    for (; i + 2 * W + (STEP > 1) <= count; i += 2 * W)
      in.template store_two<STEP>(first + i * STEP, out + i,
                                  std::make_integer_sequence<int, 2 * W>{});
  for (; i + W + (STEP > 1) <= count; i += W) {
    store(out + i, in.template vector<STEP>(first + i * STEP));
    __asm__ volatile("");  // or the compiler calls memcpy, which costs more than a few vectors
  }
  return i;
}

// The row itself where it holds already what would be staged.
inline const float* in_place(const float* row) { return row; }
inline const double* in_place(const double* row) { return row; }
#if defined(CONVLM_DOT_BFLOAT16)
inline const uint16_t* in_place(const uint16_t* row) { return row; }
#endif
inline const float* in_place(const void*) { return nullptr; }

// out[i] = in[(start + i * step) * stride] where that position lies in [0, length), else zero.
template <class Source>
void stage_source(Source in, int64_t stride, int64_t length, int64_t start, int64_t step,
                  typename Source::T* out, int64_t width) {
  // A division costs as much as a few vectors, and most rows step by one.
  const auto steps = [&](int64_t distance) {
    return distance <= 0 ? 0 : step == 1 ? distance : divide_up(distance, step);
  };
  const int64_t begin = smaller(width, steps(-start));
  const int64_t end = larger(begin, smaller(width, steps(length - start)));
  int64_t i = 0;
  for (; i < (begin < end ? begin : width); ++i) out[i] = {};
  if (begin >= end) return;  // nothing but padding
  int64_t source = (start + begin * step) * stride;
  const int64_t source_step = step * stride;
  int64_t vectors = 0;
  if (source_step == 1) vectors = stage_vectors<1>(in, source, end - i, out + i);
  if (source_step == 2) vectors = stage_vectors<2>(in, source, end - i, out + i);
  if (source_step == 3) vectors = stage_vectors<3>(in, source, end - i, out + i);
  if (source_step == 4) vectors = stage_vectors<4>(in, source, end - i, out + i);
  if (source_step == 5) vectors = stage_vectors<5>(in, source, end - i, out + i);
  if (source_step == 6) vectors = stage_vectors<6>(in, source, end - i, out + i);
  if (source_step == 8) vectors = stage_vectors<8>(in, source, end - i, out + i);
  i += vectors;
  source += vectors * source_step;
  if (source_step == 1 && i < end) {
    const int rest = static_cast<int>(end - i);
    store_partial(out + i, in.partial(source, rest), rest);
    i = end;
  }
  for (; i < end; ++i, source += source_step) out[i] = in.element(source);
  for (; i < width; ++i) out[i] = {};
}

template <class S>
void stage_row(const S* in, int64_t stride, int64_t length, int64_t start, int64_t step,
               Compute<S>* out, int64_t width) {
  stage_source(Row<S>{in}, stride, length, start, step, out, width);
}

// How the positions of one channel are laid out in a tile, and where each tap finds its own.
// Element i of a stream is the input position stream_start + i * element_step (for output 0).
struct Staging {
  int64_t streams, width, pitch, element_step;
  int64_t advance;        // staged elements from one output to the next
  int64_t* stream_start;  // [streams]
  int64_t* tap_start;     // [taps], in elements from the channel's first
  int64_t channel_pitch() const { return streams * pitch; }
};

// An odd number of cache lines between rows keeps them out of each other's cache sets.
CONVLM_INLINE int64_t staged_pitch(int64_t width, int lanes) {
  return (divide_up(width, lanes) | 1) * lanes;
}

// Each tap has a stream of its own: right for any taps, and least where dilation dwarfs the tile.
inline void plan_separate(Staging& plan, int64_t outputs, int64_t in_step,
                          const int64_t* tap_offset, int64_t taps, int lanes) {
  plan.streams = taps;
  plan.width = outputs;
  plan.pitch = staged_pitch(plan.width, lanes);
  plan.element_step = in_step;
  plan.advance = 1;
  for (int64_t j = 0; j < taps; ++j) {
    plan.stream_start[j] = tap_offset[j];
    plan.tap_start[j] = j * plan.pitch;
  }
}

constexpr int64_t greatest_common_divisor(int64_t a, int64_t b) {
  return b == 0 ? a : greatest_common_divisor(b, a % b);
}

// Outputs next to each other are next to each other in the tile, as vectors of outputs need it: one
// stream per phase of the stride that any tap reads. Taps are evenly spaced, so the phases come
// round in turn.
inline void plan_for_vectors(Staging& plan, int64_t outputs, int64_t in_step,
                             const int64_t* tap_offset, int64_t taps, int lanes) {
  const int64_t spacing = taps > 1 ? tap_offset[1] - tap_offset[0] : 0;
  const int64_t distance = spacing < 0 ? -spacing : spacing;
  plan.streams = smaller(taps, in_step / greatest_common_divisor(in_step, distance));
  const int64_t between = plan.streams * distance / in_step;  // taps of one stream, in elements
  const int64_t spread = (divide_up(taps, plan.streams) - 1) * between;
  if (plan.streams * (outputs + spread) > taps * outputs)
    return plan_separate(plan, outputs, in_step, tap_offset, taps, lanes);
  plan.width = outputs + spread;
  plan.pitch = staged_pitch(plan.width, lanes);
  plan.element_step = in_step;
  plan.advance = 1;
  for (int64_t s = 0; s < plan.streams; ++s) {
    const int64_t last = s + (taps - 1 - s) / plan.streams * plan.streams;
    plan.stream_start[s] = spacing < 0 ? tap_offset[last] : tap_offset[s];
  }
  for (int64_t j = 0; j < taps; ++j) {
    const int64_t s = j % plan.streams;
    plan.tap_start[j] = s * plan.pitch + (tap_offset[j] - plan.stream_start[s]) / in_step;
  }
}

// Outputs are read one scalar at a time, so any distance between them will do: one plain stream.
inline void plan_for_scalars(Staging& plan, int64_t outputs, int64_t in_step,
                             const int64_t* tap_offset, int64_t taps, int lanes) {
  int64_t first = tap_offset[0], last = tap_offset[0];
  for (int64_t j = 1; j < taps; ++j) {
    first = smaller(first, tap_offset[j]);
    last = larger(last, tap_offset[j]);
  }
  const int64_t width = (outputs - 1) * in_step + last - first + 1;
  // Picking every in_step-th element costs more than to copy all.
  if (width > (in_step == 1 ? 1 : 2) * taps * outputs)
    return plan_separate(plan, outputs, in_step, tap_offset, taps, lanes);
  plan.streams = 1;
  plan.width = width;
  plan.pitch = staged_pitch(width, lanes);
  plan.element_step = 1;
  plan.advance = in_step;
  plan.stream_start[0] = first;
  for (int64_t j = 0; j < taps; ++j) plan.tap_start[j] = tap_offset[j] - first;
}

// Nothing is staged: inputs are read where they are.
inline void plan_in_place(Staging& plan, int64_t channel_stride, int64_t position_stride,
                          int64_t in_step, const int64_t* tap_offset, int64_t taps) {
  plan.streams = 1;
  plan.pitch = channel_stride;
  plan.advance = in_step * position_stride;
  for (int64_t j = 0; j < taps; ++j) plan.tap_start[j] = tap_offset[j] * position_stride;
}

// Whether a stream of `plan` holds anything but padding.
inline bool has_input(const Staging& plan, int64_t stream, int64_t length, int64_t first_position) {
  const int64_t first = plan.stream_start[stream] + first_position;
  return first < length && first + (plan.width - 1) * plan.element_step >= 0;
}

// Phases that begin next to each other are the columns of a matrix whose rows are a step long:
// turning it reads whole vectors. Steps of no more than four have shuffles of their own.
template <class S>
bool phases_are_columns(const Staging& plan, int64_t position_stride) {
  if (kLanes<Compute<S>> > 16 || plan.element_step <= 4 || position_stride != 1) return false;
  for (int64_t s = 1; s < plan.streams; ++s)
    if (plan.stream_start[s] != plan.stream_start[0] + s) return false;
  return plan.streams > 1;
}

template <class S>
void stage_columns(const Staging& plan, const S* in, int64_t length, int64_t first_position,
                   Compute<S>* out) {
  const int64_t start = plan.stream_start[0] + first_position, step = plan.element_step;
  const int64_t first = smaller(plan.width, larger(0, divide_up(-start, step)));
  const int64_t end = divide_down(length - start - plan.streams, step) + 1;
  const int64_t last = larger(first, smaller(plan.width, end));
  if constexpr (kLanes<Compute<S>> <= 16)
    transpose(in + start + first * step, step, last - first, plan.streams, out + first, plan.pitch);
  for (int64_t i = 0; i < plan.width; ++i) {
    if (i == first) i = last;
    for (int64_t s = 0; i < plan.width && s < plan.streams; ++s) {
      const int64_t position = start + i * step + s;
      out[s * plan.pitch + i] =
          0 <= position && position < length ? to_compute(in[position]) : Compute<S>{};
    }
  }
}

// Stages `channels` rows for the outputs that begin at `first_position` of the input, less the
// taps' offsets. Streams of nothing but padding may be left out, where nobody reads them.
template <class S>
void stage(const Staging& plan, const S* in, int64_t channels, int64_t channel_stride,
           int64_t position_stride, int64_t length, int64_t first_position, Compute<S>* out,
           bool with_padding = true) {
  if (phases_are_columns<S>(plan, position_stride)) {
    for (int64_t c = 0; c < channels; ++c)
      stage_columns(plan, in + c * channel_stride, length, first_position,
                    out + c * plan.channel_pitch());
    return;
  }
  for (int64_t s = 0; s < plan.streams; ++s) {
    if (!with_padding && !has_input(plan, s, length, first_position)) continue;
    for (int64_t c = 0; c < channels; ++c)
      stage_row(in + c * channel_stride, position_stride, length,
                plan.stream_start[s] + first_position, plan.element_step,
                out + c * plan.channel_pitch() + s * plan.pitch, plan.width);
  }
}

#if defined(CONVLM_DOT_BFLOAT16)
// The same for pairs of channels.
inline void stage(const Staging& plan, const bfloat16* in, int64_t channels, int64_t channel_stride,
                  int64_t position_stride, int64_t length, int64_t first_position, Pair* out,
                  bool with_padding = true) {
  for (int64_t s = 0; s < plan.streams; ++s) {
    if (!with_padding && !has_input(plan, s, length, first_position)) continue;
    for (int64_t c = 0; c < channels; c += 2) {
      const bfloat16* low = in + c * channel_stride;
      const bool single = c + 1 == channels;
      const PairOfRows rows{low, single ? low : low + channel_stride, single};
      stage_source(rows, position_stride, length, plan.stream_start[s] + first_position,
                   plan.element_step, out + c / 2 * plan.channel_pitch() + s * plan.pitch,
                   plan.width);
    }
  }
}
#endif

// Cache lines that will be wanted soon: pieces of rows. They are asked for a few at a time, between
// products, so that memory is at work all the time; many at once would keep products waiting.
class LinesAhead {
 public:
  LinesAhead() = default;
  // Pitches and lengths are in elements.
  template <class S>
  LinesAhead(const S* start, int64_t rows, int64_t row_pitch, int64_t pieces, int64_t piece_pitch,
             int64_t length)
      : next(reinterpret_cast<uintptr_t>(start)),
        rows(rows),
        pieces(pieces),
        piece_pitch(piece_pitch * sizeof(S)),
        to_next_row((row_pitch - pieces * piece_pitch) * sizeof(S)),
        lines(divide_up(length * sizeof(S), kLine)),
        rows_left(rows),
        pieces_left(pieces) {}

  int64_t count() const { return rows * pieces * lines; }

  CONVLM_INLINE void ask(int64_t wanted) {
    while (wanted > 0 && rows_left > 0) {
      const int64_t end = smaller(lines, line + wanted);
      wanted -= end - line;
      for (; line < end; ++line)
        __builtin_prefetch(reinterpret_cast<const void*>(next + line * kLine));
      if (line < lines) return;
      line = 0;
      next += piece_pitch;
      if (--pieces_left > 0) continue;
      pieces_left = pieces;
      next += to_next_row;
      --rows_left;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  uintptr_t next{};  // the piece to be asked for, from `line` on
  int64_t rows{}, pieces{}, piece_pitch{}, to_next_row{}, lines{};
  int64_t rows_left{}, pieces_left{}, line{};
};

// What stage() will read.
template <class S>
LinesAhead lines_to_stage(const Staging& plan, const S* in, int64_t channels,
                          int64_t channel_stride, int64_t position_stride, int64_t first_position) {
  if (position_stride != 1) return {};
  const bool apart = plan.streams > 1 && plan.element_step == 1;
  const int64_t step = apart ? plan.stream_start[1] - plan.stream_start[0] : 0;
  return {in + plan.stream_start[0] + first_position,
          channels,
          channel_stride,
          apart ? plan.streams : 1,
          step,
          plan.width * plan.element_step};
}
