// Copies of the input into small tiles of the compute type: the only place that knows about
// padding, storage types and strides of the input. The tiles stay in cache; nothing of the input's
// size is made.

// Elsewhere several partial loads cost more than their elements.
constexpr bool kCheapParts = CONVLM_VECTOR_BYTES == 64;

// The first lanes of every STEP-th element from FIRST on, as far as they are in the first COUNT
// vectors. load_vector(i) gives vector i, and is called only if that begins before element `end`.
template <class T, int STEP, int FIRST, int COUNT, class Load, int... L>
CONVLM_INLINE Vector<T> gather_every(const Load& load_vector, int64_t end,
                                     std::integer_sequence<int, L...> lanes) {
  constexpr int W = kLanes<T>;
  if constexpr (COUNT == 1) {
    const Vector<T> v = load_vector(0);
    return __builtin_shufflevector(v, v, (FIRST + STEP * L < W ? FIRST + STEP * L : 0)...);
  } else {
    constexpr int kBefore = (COUNT - 1) * W;
    const Vector<T> before = gather_every<T, STEP, FIRST, COUNT - 1>(load_vector, end, lanes);
    if (kBefore >= end) return before;
    return __builtin_shufflevector(before, load_vector(COUNT - 1),
                                   (FIRST + STEP * L < kBefore || FIRST + STEP * L >= kBefore + W
                                        ? L
                                        : W + FIRST + STEP * L - kBefore)...);
  }
}

// Every STEP-th element, from STEP vectors that lie next to each other.
template <int STEP, class S, int... L>
CONVLM_INLINE Vector<Compute<S>> load_every(const S* p, std::integer_sequence<int, L...> lanes) {
  constexpr int W = kLanes<Compute<S>>;
  if constexpr (STEP == 1) {
    return load(p);
  } else if constexpr (STEP % 2 == 1) {
    return gather_every<Compute<S>, STEP, 0, STEP>([&](int i) { return load(p + i * W); }, STEP * W,
                                                   lanes);
  } else {
    return __builtin_shufflevector(load_every<STEP / 2>(p, lanes),
                                   load_every<STEP / 2>(p + STEP / 2 * W, lanes), (2 * L)...);
  }
}

// The same of no more than the first `count`; the other lanes have no meaning. Nothing behind the
// last one is read.
template <int STEP, class S>
CONVLM_INLINE Vector<Compute<S>> load_every_partial(const S* p, int count) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const int end = (count - 1) * STEP + 1;
  return gather_every<T, STEP, 0, STEP>(
      [&](int i) { return load_partial(p + i * W, static_cast<int>(smaller(W, end - i * W))); },
      end, std::make_integer_sequence<int, W>{});
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
  template <int STEP>
  CONVLM_INLINE Vector<T> partial(int64_t i, int count) const {
    return load_every_partial<STEP>(in + i, count);
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
  template <int STEP>
  CONVLM_INLINE Vector<Pair> partial(int64_t i, int count) const {
    return masked(Row<bfloat16>{low}.partial<STEP>(i, count),
                  Row<bfloat16>{high}.partial<STEP>(i, count));
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

// Rows of a tensor as rows of operands.
template <class T, class S>
struct OperandRows {
  const S* in;
  int64_t pitch, count;
  CONVLM_INLINE Row<S> operator()(int64_t row) const { return {in + row * pitch}; }
};
#if defined(CONVLM_DOT_BFLOAT16)
template <>
struct OperandRows<Pair, bfloat16> {
  const bfloat16* in;
  int64_t pitch, count;
  CONVLM_INLINE PairOfRows operator()(int64_t row) const {
    const bfloat16* low = in + 2 * row * pitch;
    const bool single = 2 * row + 1 == count;
    return {low, single ? low : low + pitch, single};
  }
};
#endif

// The row itself where it holds already what would be staged.
inline const float* in_place(const float* row) { return row; }
inline const double* in_place(const double* row) { return row; }
#if defined(CONVLM_DOT_BFLOAT16)
inline const uint16_t* in_place(const uint16_t* row) { return row; }
#endif
inline const float* in_place(const void*) { return nullptr; }

// The elements of a staged row that lie in the input, and where the first of them does.
struct Inside {
  int64_t begin, end, source;

  // Of [0, width), where element i is at (start + i * step) * stride and `length` positions exist.
  Inside(int64_t stride, int64_t length, int64_t start, int64_t step, int64_t width) {
    // A division costs as much as a few vectors, and most rows step by one.
    const auto steps = [&](int64_t distance) {
      return distance <= 0 ? 0 : step == 1 ? distance : divide_up(distance, step);
    };
    begin = smaller(width, steps(-start));
    end = larger(begin, smaller(width, steps(length - start)));
    source = (start + begin * step) * stride;
  }
};

template <class T>
CONVLM_INLINE void clear(T* out, int64_t count) {
  constexpr int W = kLanes<T>;
  for (; count >= W; count -= W, out += W) {
    store(out, Vector<T>{});
    __asm__ volatile("");  // or the compiler calls memset, which costs more than a few vectors
  }
  if (count > 0) store_partial(out, Vector<T>{}, static_cast<int>(count));
}

// STEP: that of the elements in the input, or 0 for any other.
template <int STEP, class Source>
CONVLM_INLINE void stage_inside(Source in, const Inside& inside, int64_t step,
                                typename Source::T* out, int64_t width) {
  constexpr int W = kLanes<typename Source::T>;
  clear(out, inside.begin);
  int64_t i = inside.begin, source = inside.source;
  if constexpr (STEP > 0) {
    // Vectors of a step read elements behind their last one, up to the next.
    constexpr int kMore = STEP > 1 ? 1 : 0;
    if constexpr (Source::kStoresTwo)
      for (; i + 2 * W + kMore <= inside.end; i += 2 * W, source += 2 * W * STEP)
        in.template store_two<STEP>(source, out + i, std::make_integer_sequence<int, 2 * W>{});
    for (; i + W + kMore <= inside.end; i += W, source += W * STEP) {
      store(out + i, in.template vector<STEP>(source));
      __asm__ volatile("");  // or the compiler calls memcpy, which costs more than a few vectors
    }
    if ((STEP == 1 || kCheapParts) && i < inside.end) {
      const int rest = static_cast<int>(inside.end - i);
      store_partial(out + i, in.template partial<STEP>(source, rest), rest);
      i = inside.end;
    }
  }
  for (; i < inside.end; ++i, source += step) out[i] = in.element(source);
  clear(out + inside.end, width - inside.end);
}

// Calls body(constant) with the step as a constant, where there is code of its own for it.
template <class Body>
CONVLM_INLINE void for_step(int64_t step, const Body& body) {
  switch (step) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 6:
      return body(std::integral_constant<int, 6>{});
    case 8:
      return body(std::integral_constant<int, 8>{});
    default:
      return body(std::integral_constant<int, 0>{});
  }
}

// out[r * out_pitch + i] = row(r)[(start + i * step) * stride] where that position lies in
// [0, length), else zero.
template <class RowAt, class T>
void stage_rows(const RowAt& row, int64_t rows, int64_t stride, int64_t length, int64_t start,
                int64_t step, T* out, int64_t out_pitch, int64_t width) {
  const Inside inside(stride, length, start, step, width);
  for_step(step * stride, [&](auto constant) {
    for (int64_t r = 0; r < rows; ++r)
      stage_inside<constant()>(row(r), inside, step * stride, out + r * out_pitch, width);
  });
}

template <class Source>
void stage_source(Source in, int64_t stride, int64_t length, int64_t start, int64_t step,
                  typename Source::T* out, int64_t width) {
  stage_rows([&](int64_t) { return in; }, 1, stride, length, start, step, out, 0, width);
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

// Outputs next to each other are next to each other in the tile, as vectors of outputs need it: one
// stream per phase of the stride that any tap reads. With a stride, taps are evenly spaced, so the
// phases come round in turn; without, all of them are one plain stream.
inline void plan_for_vectors(Staging& plan, int64_t outputs, int64_t in_step,
                             const int64_t* tap_offset, int64_t taps, int lanes) {
  if (in_step == 1) return plan_for_scalars(plan, outputs, in_step, tap_offset, taps, lanes);
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

// out[s * pitch + i] = in[i * STEP + s] for s < streams <= STEP and i < count.
template <int STEP, class S, int... STREAM>
CONVLM_INLINE void deal(const S* in, int64_t count, int64_t streams, Compute<S>* out, int64_t pitch,
                        std::integer_sequence<int, STREAM...>) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  Vector<T> v[STEP];
  const auto store_streams = [&](const auto& store_stream) {
    const auto vector = [&](int k) { return v[k]; };
    (void)((STREAM < streams &&
            (store_stream(out + STREAM * pitch,
                          gather_every<T, STEP, STREAM, STEP>(
                              vector, STEP * W, std::make_integer_sequence<int, W>{})),
             true)) &&
           ...);
  };
  // Vectors of fewer streams read elements behind their last one, up to the next.
  const int64_t whole = streams == STEP ? count : count - 1;
  int64_t i = 0;
  for (; i + W <= whole; i += W, in += STEP * W, out += W) {
#pragma GCC unroll 8
    for (int k = 0; k < STEP; ++k) v[k] = load(in + k * W);
    store_streams([](T* to, Vector<T> stream) { store(to, stream); });
  }
  if (kCheapParts && i < count) {
    const int rest = static_cast<int>(count - i);
    const int end = static_cast<int>((rest - 1) * STEP + streams);
#pragma GCC unroll 8
    for (int k = 0; k < STEP; ++k)
      v[k] = k * W < end ? load_partial(in + k * W, static_cast<int>(smaller(W, end - k * W)))
                         : Vector<T>{};
    store_streams([&](T* to, Vector<T> stream) { store_partial(to, stream, rest); });
    return;
  }
  for (; i < count; ++i, in += STEP, ++out)
    for (int64_t s = 0; s < streams; ++s) out[s * pitch] = to_compute(in[s]);
}

// Whether the streams are phases that begin next to each other. Steps of no more than four are read
// once for each of them as fast.
template <class S>
bool phases_are_columns(const Staging& plan, int64_t position_stride) {
  if (kLanes<Compute<S>> > 16 || plan.element_step <= 4 || position_stride != 1) return false;
  // Not each tap's own stream, of which there may be more than phases.
  if (plan.streams > plan.element_step) return false;
  for (int64_t s = 1; s < plan.streams; ++s)
    if (plan.stream_start[s] != plan.stream_start[0] + s) return false;
  return plan.streams > 1;
}

// Phases are the columns of a matrix whose rows are a step long: each input is read once.
template <class S>
void stage_columns(const Staging& plan, const S* in, int64_t channels, int64_t channel_stride,
                   int64_t length, int64_t first_position, Compute<S>* out) {
  const int64_t start = plan.stream_start[0] + first_position, step = plan.element_step;
  // What all of them have inside: the first begins last, and the last one ends first. No other has
  // more than one element before or after that.
  const int64_t first = Inside(1, length, start, step, plan.width).begin;
  const int64_t last =
      larger(first, Inside(1, length, start + plan.streams - 1, step, plan.width).end);
  for_step(step, [&](auto constant) {
    constexpr int kStep = constant();
    for (int64_t c = 0; c < channels; ++c) {
      const S* source = in + c * channel_stride + start + first * step;
      Compute<S>* to = out + c * plan.channel_pitch() + first;
      if constexpr (kStep == 5 || kStep == 6)
        deal<kStep>(source, last - first, plan.streams, to, plan.pitch,
                    std::make_integer_sequence<int, kStep>{});
      else if constexpr (kLanes<Compute<S>> <= 16)
        transpose(source, step, last - first, plan.streams, to, plan.pitch);
    }
  });
  if (first == 0 && last == plan.width) return;
  for (int64_t c = 0; c < channels; ++c, in += channel_stride)
    for (int64_t s = 0; s < plan.streams; ++s, out += plan.pitch) {
      const auto put = [&](int64_t i) {
        const int64_t position = start + i * step + s;
        out[i] = 0 <= position && position < length ? to_compute(in[position]) : Compute<S>{};
      };
      clear(out, first - 1);
      if (first > 0) put(first - 1);
      if (last < plan.width) put(last);
      clear(out + last + 1, plan.width - last - 1);
    }
}

// Stages `channels` rows for the outputs that begin at `first_position` of the input, less the
// taps' offsets. Streams of nothing but padding may be left out, where nobody reads them.
template <class S, class T>
void stage(const Staging& plan, const S* in, int64_t channels, int64_t channel_stride,
           int64_t position_stride, int64_t length, int64_t first_position, T* out,
           bool with_padding = true) {
  if constexpr (std::is_same_v<T, Compute<S>>)
    if (phases_are_columns<S>(plan, position_stride))
      return stage_columns(plan, in, channels, channel_stride, length, first_position, out);
  for (int64_t s = 0; s < plan.streams; ++s)
    if (with_padding || has_input(plan, s, length, first_position))
      stage_rows(OperandRows<T, S>{in, channel_stride, channels}, divide_up(channels, kDepth<T>),
                 position_stride, length, plan.stream_start[s] + first_position, plan.element_step,
                 out + s * plan.pitch, plan.channel_pitch(), plan.width);
}

// Cache lines that will be wanted soon: pieces of rows. They are asked for a few at a time, between
// products, so that memory is at work all the time; many at once would keep products waiting.
class LinesAhead {
 public:
  static constexpr int64_t kLine = 64;
  static constexpr int kIntoL1 = 3, kIntoL2 = 2;  // as __builtin_prefetch() says it

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

  // Gives how many more were wanted than were left.
  template <int CACHE = kIntoL1>
  CONVLM_INLINE int64_t ask(int64_t wanted) {
    while (wanted > 0 && rows_left > 0) {
      const int64_t end = smaller(lines, line + wanted);
      wanted -= end - line;
      for (; line < end; ++line)
        __builtin_prefetch(reinterpret_cast<const void*>(next + line * kLine), 0, CACHE);
      if (line < lines) break;
      line = 0;
      next += piece_pitch;
      if (--pieces_left > 0) continue;
      pieces_left = pieces;
      next += to_next_row;
      --rows_left;
    }
    return wanted;
  }

 private:
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
