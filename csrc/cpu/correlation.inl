// The product behind forward and grad_input:
//   out[n][m][q] = activation(bias[m] + sum over c, j of weight[m][c][j] * in[n][c][q * in_step +
//   tap_offset[j]])
// All kernels of both share this description; select.inl says which one takes what.

template <class S>
struct Correlation {
  int64_t batch, groups, rows, channels;  // rows and channels of one group
  int64_t outputs, length, in_step;
  Precision precision;
  int64_t taps;
  const int64_t* tap_index;   // which element of the weight's tap dimension
  const int64_t* tap_offset;  // which input position, for output 0

  const S* in;
  int64_t in_batch, in_channel, in_position;  // strides
  const S* weight;
  int64_t weight_group, weight_row, weight_channel, weight_tap;  // strides
  const S* bias;
  int64_t bias_stride;
  Activation activation;
  S* out;
  int64_t out_batch, out_group, out_row, out_step;  // strides; out_step is that of positions

  int64_t products() const { return channels * taps; }
};

// ---- the reduction: which steps the core takes, in which order ----

// The longer of channels and taps becomes the inner, regular one.
struct Reduction {
  bool taps_are_inner;
  int64_t outer, inner;
  int64_t *weight_start, *in_start;
  int64_t weight_step, in_step;

  Steps all() const { return {0, outer, 0, inner}; }
  // Those of some channels.
  Steps of_channels(int64_t first, int64_t last) const {
    return taps_are_inner ? Steps{first, last, 0, inner} : Steps{0, outer, first, last};
  }
};

struct CorrelationPlan {
  Staging staging;
  Reduction reduction;
};

inline int64_t* plan_scratch(int64_t taps, int64_t channels) {
  return static_cast<int64_t*>(
      scratch(Slot::plan, sizeof(int64_t) * (2 * taps + 2 * larger(taps, channels))));
}

inline void assign_plan_arrays(int64_t* memory, Staging& staging, Reduction& reduction,
                               int64_t taps, int64_t channels) {
  staging.stream_start = memory;
  staging.tap_start = memory + taps;
  reduction.weight_start = memory + 2 * taps;
  reduction.in_start = reduction.weight_start + larger(taps, channels);
}

// Weights are packed [channel][tap][weight_pitch]; with pairs, a channel is a pair of them.
inline void plan_reduction(Reduction& r, const Staging& staging, int64_t channels, int64_t taps,
                           int64_t weight_pitch) {
  const int64_t spacing = taps > 1 ? staging.tap_start[1] - staging.tap_start[0] : 0;
  bool regular = taps > channels;
  for (int64_t j = 2; regular && j < taps; ++j)
    regular = staging.tap_start[j] - staging.tap_start[j - 1] == spacing;
  r.taps_are_inner = regular;
  if (regular) {
    r.outer = channels;
    r.inner = taps;
    r.weight_step = weight_pitch;
    r.in_step = spacing;
    for (int64_t c = 0; c < channels; ++c) {
      r.weight_start[c] = c * taps * weight_pitch;
      r.in_start[c] = c * staging.channel_pitch() + staging.tap_start[0];
    }
  } else {
    r.outer = taps;
    r.inner = channels;
    r.weight_step = taps * weight_pitch;
    r.in_step = staging.channel_pitch();
    for (int64_t j = 0; j < taps; ++j) {
      r.weight_start[j] = j * weight_pitch;
      r.in_start[j] = staging.tap_start[j];
    }
  }
}

// ---- taps that read nothing but padding ----

// Some taps in a row.
struct TapRange {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// The taps that may read a part of the input for one of the outputs [begin, end). The others would
// add zeros, and there are many of them where the kernel spans more than the input is long.
inline TapRange taps_inside(const int64_t* tap_offset, int64_t taps, int64_t step, int64_t length,
                            int64_t begin, int64_t end) {
  const auto outside = [&](int64_t tap) {
    return begin * step + tap_offset[tap] >= length || (end - 1) * step + tap_offset[tap] < 0;
  };
  TapRange range{0, taps};
  while (range.first < range.last && outside(range.first)) ++range.first;
  while (range.first < range.last && outside(range.last - 1)) --range.last;
  return range;
}
template <class S>
TapRange taps_inside(const Correlation<S>& p, int64_t begin, int64_t end) {
  return taps_inside(p.tap_offset, p.taps, p.in_step, p.length, begin, end);
}

// The same correlation of these taps alone. Chains begin elsewhere then: not for forward, which has
// the bits of steps.
template <class S>
Correlation<S> of_taps_inside(Correlation<S> p) {
  const TapRange taps = taps_inside(p, 0, larger(1, p.outputs));
  p.tap_index += taps.first;
  p.tap_offset += taps.first;
  p.taps = taps.count();
  return p;
}

template <class S>
bool reads_no_padding(const Correlation<S>& p) {
  bool inside = true;
  for (int64_t j = 0; j < p.taps; ++j)
    inside &= p.tap_offset[j] >= 0 && p.tap_offset[j] + (p.outputs - 1) * p.in_step < p.length;
  return inside;
}

inline Steps steps_of(const Reduction& r, TapRange taps) {
  if (r.taps_are_inner) return {0, r.outer, taps.first, taps.last};
  return {taps.first, taps.last, 0, r.inner};
}

inline Steps overlap(const Steps& a, const Steps& b) {
  return {larger(a.first_outer, b.first_outer), smaller(a.last_outer, b.last_outer),
          larger(a.first_inner, b.first_inner), smaller(a.last_inner, b.last_inner)};
}

// A reduction that has more to read than the caches hold is taken in parts, of whole chains and in
// their order: the bits do not depend on them. Calls body(part) for parts of about `most` of the
// steps `all`, which begin with a chain.
template <class Body>
CONVLM_INLINE void for_each_part(const Reduction& r, const Steps& all, int64_t chain, int64_t most,
                                 const Body& body) {
  const Chains chains(r.outer, r.inner, chain);
  const int64_t all_outer = all.last_outer - all.first_outer;
  const int64_t outer =
      smaller(all_outer, larger(1, most / (chains.inner * chains.outer)) * chains.outer);
  const int64_t inner = outer < all_outer
                            ? chains.inner
                            : larger(1, most / (all_outer * chains.inner)) * chains.inner;
  for (int64_t s = all.first_inner; s < all.last_inner; s += inner)
    for (int64_t o = all.first_outer; o < all.last_outer; o += outer)
      body(Steps{o, smaller(o + outer, all.last_outer), s, smaller(s + inner, all.last_inner)});
}
template <class Body>
CONVLM_INLINE void for_each_part(const Reduction& r, int64_t chain, int64_t most,
                                 const Body& body) {
  for_each_part(r, r.all(), chain, most, body);
}

// How many channels are a piece of about `most` steps: whole chains, which come one behind the
// other.
inline int64_t channels_of_piece(const Reduction& r, int64_t chain, int64_t most) {
  const Chains chains(r.outer, r.inner, chain);
  if (r.taps_are_inner)
    return r.inner > chains.inner ? r.outer
                                  : larger(1, most / (r.inner * chains.outer)) * chains.outer;
  return larger(1, most / (r.outer * chains.inner)) * chains.inner;
}

// The outputs that read a part of the input by this tap.
struct OutputRange {
  int64_t first, last;
  int64_t count() const { return larger(0, last - first); }
};
inline OutputRange outputs_inside(int64_t offset, int64_t step, int64_t length, int64_t outputs) {
  const auto steps = [&](int64_t distance) {
    return step == 1 ? distance : divide_up(distance, step);
  };
  return {larger(0, steps(-offset)), smaller(outputs, steps(length - offset))};
}
template <class S>
OutputRange outputs_inside(const Correlation<S>& p, int64_t tap) {
  return outputs_inside(p.tap_offset[tap], p.in_step, p.length, p.outputs);
}

// How many products the outputs of one row and channel take, but for those with padding.
inline int64_t products_inside(const int64_t* tap_offset, int64_t taps, int64_t step,
                               int64_t length, int64_t outputs) {
  int64_t products = 0;
  for (int64_t j = 0; j < taps; ++j)
    products += outputs_inside(tap_offset[j], step, length, outputs).count();
  return products;
}
template <class S>
int64_t products_inside(const Correlation<S>& p) {
  return products_inside(p.tap_offset, p.taps, p.in_step, p.length, p.outputs);
}

// ---- packing of weights ----

// How many channels lie in the operands [first, last), of which each holds one or a pair.
template <class T, class S>
int64_t channels_of(const Correlation<S>& p, int64_t first, int64_t last) {
  return smaller(p.channels, last * kDepth<T>) - first * kDepth<T>;
}

// The same correlation of some channels alone, or of pairs of them, as far as its weight goes.
template <class T, class S>
Correlation<S> with_weights_of(Correlation<S> p, int64_t channel, int64_t last_channel) {
  p.weight += channel * kDepth<T> * p.weight_channel;
  p.channels = channels_of<T>(p, channel, last_channel);
  return p;
}

// Taps next to each other in the weight, too.
template <class S>
bool taps_are_neighbours(const Correlation<S>& p) {
  return p.taps > 0 && p.weight_tap == 1 && p.tap_index[p.taps - 1] - p.tap_index[0] == p.taps - 1;
}

// Weights of one channel lie together, in the order of the taps.
template <class S>
bool natural_weight(const Correlation<S>& p) {
  return taps_are_neighbours(p) && p.weight_channel == p.taps && p.tap_index[0] == 0;
}

// Whether many weights at once are turned into place. Few taps are picked by shuffles of their own.
template <class S>
bool is_turned(const Correlation<S>& p, int64_t taps) {
  constexpr int64_t kFewestTurned = 7;
  return natural_weight(p) || (taps >= kFewestTurned && taps_are_neighbours(p));
}

// out[(c * p.taps + j) * pitch + i] = weight of row first + i for the taps j in `taps`, if not for
// all, and zero for count <= i < padded.
template <class S>
void pack_rows(const Correlation<S>& p, TapRange taps, int64_t group, int64_t first, int64_t count,
               int64_t padded, int64_t pitch, Compute<S>* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const S* source = p.weight + group * p.weight_group + first * p.weight_row;
  if (natural_weight(p) && 2 * taps.count() > p.taps) {
    for (int64_t i = 0; i < padded; i += W)
      transpose_strip(source + i * p.weight_row, p.weight_row, larger(0, smaller(W, count - i)),
                      p.products(), out + i, pitch, smaller(W, padded - i));
    return;
  }
  if (is_turned(p, taps.count())) {
    const auto turn = [&](int64_t c, int64_t i) {
      transpose_strip(source + c * p.weight_channel + p.tap_index[taps.first] + i * p.weight_row,
                      p.weight_row, larger(0, smaller(W, count - i)), taps.count(),
                      out + (c * p.taps + taps.first) * pitch + i, pitch, smaller(W, padded - i));
    };
    // In the order of memory.
    if (p.weight_row > p.weight_channel)
      for (int64_t i = 0; i < padded; i += W)
        for (int64_t c = 0; c < p.channels; ++c) turn(c, i);
    else
      for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t i = 0; i < padded; i += W) turn(c, i);
    return;
  }
  // Neighbouring taps of a row come with the same loads.
  const bool dealt = taps_are_neighbours(p) && taps.count() > 1 && taps.count() <= p.weight_row;
  for_step(dealt ? p.weight_row : 0, [&](auto constant) {
    for (int64_t c = 0; c < p.channels; ++c) {
      T* first_tap = out + (c * p.taps + taps.first) * pitch;
      if constexpr (constexpr int kStep = constant(); kStep > 1) {
        deal<kStep>(source + c * p.weight_channel + p.tap_index[taps.first], count, taps.count(),
                    first_tap, pitch, std::make_integer_sequence<int, kStep>{});
        for (int64_t j = 0; count < padded && j < taps.count(); ++j)
          clear(first_tap + j * pitch + count, padded - count);
      } else {
        for (int64_t j = 0; j < taps.count(); ++j)
          stage_row(source + c * p.weight_channel + p.tap_index[taps.first + j] * p.weight_tap,
                    p.weight_row, count, 0, 1, first_tap + j * pitch, padded);
      }
    }
  });
}

#if defined(CONVLM_DOT_BFLOAT16)
// The same for pairs of channels.
inline void pack_rows(const Correlation<bfloat16>& p, TapRange taps, int64_t group, int64_t first,
                      int64_t count, int64_t padded, int64_t pitch, Pair* out) {
  constexpr int W = kLanes<float>;
  const bfloat16* source = p.weight + group * p.weight_group + first * p.weight_row;
  if (natural_weight(p) && 2 * taps.count() > p.taps) {
    // Neighbours in a row are turned together, of some channels at a time.
    constexpr int64_t kTurned = 512;
    const int64_t piece = larger(1, kTurned / p.taps / 2) * 2;
    Pair* turned =
        static_cast<Pair*>(scratch(Slot::panel, sizeof(Pair) * W * divide_up(piece * p.taps, 2)));
    for (int64_t i = 0; i < padded; i += W) {
      const int64_t rows = larger(0, smaller(W, count - i));
      const int stored = static_cast<int>(smaller(W, padded - i));
      for (int64_t c0 = 0; c0 < p.channels; c0 += piece) {
        const bfloat16* in = source + i * p.weight_row + c0 * p.taps;
        const int64_t channels = smaller(piece, p.channels - c0), elements = channels * p.taps;
        transpose_strip(reinterpret_cast<const PairStart*>(in), p.weight_row, rows, elements / 2,
                        turned, W, W);
        for (int r = 0; elements % 2 == 1 && r < W; ++r)
          turned[elements / 2 * W + r] = {
              r < rows ? in[r * p.weight_row + elements - 1].bits : uint16_t(0), 0};
        const auto element = [&](int64_t e) {
          const Vector<Pair> both = load(turned + e / 2 * W);
          return e % 2 == 1 ? both >> 16 : both & 0xffffu;
        };
        Pair* to = out + c0 / 2 * p.taps * pitch + i;
        for (int64_t c = 0; c < channels; c += 2)
          for (int64_t e = c * p.taps; e < (c + 1) * p.taps; ++e, to += pitch)
            store_partial(
                to, c + 1 < channels ? element(e) | element(e + p.taps) << 16 : element(e), stored);
      }
    }
    return;
  }
  for (int64_t c = 0; c < divide_up(p.channels, 2); ++c)
    for (int64_t j = taps.first; j < taps.last; ++j) {
      const OperandRows<Pair, bfloat16> rows{source + p.tap_index[j] * p.weight_tap,
                                             p.weight_channel, p.channels};
      stage_source(rows(c), p.weight_row, count, 0, 1, out + (c * p.taps + j) * pitch, padded);
    }
}
#endif

// ---- finishing a tile: bias, activation, conversion and the store ----

template <class S>
CONVLM_INLINE Compute<S> bias_of(const Correlation<S>& p, int64_t row) {
  return p.bias ? to_compute(p.bias[row * p.bias_stride]) : 0;
}

// One row of positions, contiguous in the tile, which may end with it.
template <class S>
void finish_row(const Correlation<S>& p, Compute<S>* tile, Compute<S> bias, int64_t count, S* out) {
  constexpr int W = kLanes<Compute<S>>;
  const auto finish = [&](auto* to) {
    int64_t q = 0;
    if (p.activation == Activation::none)
      for (; q + W <= count; q += W) store(to + q, load(tile + q) + bias);
    for (; q + W <= count; q += W) store(to + q, activate(load(tile + q) + bias, p.activation));
    if (const int rest = static_cast<int>(count - q); rest > 0)
      store_partial(to + q, activate(load_partial(tile + q, rest) + bias, p.activation), rest);
  };
  if (p.out_step == 1) return finish(out);
  finish(tile);
  for (int64_t q = 0; q < count; ++q) from_compute(tile[q], out[q * p.out_step]);
}

// A tile of `positions` x rows, turned on its way out.
template <class S>
void finish_columns(const Correlation<S>& p, Compute<S>* tile, int64_t pitch,
                    const Compute<S>* bias, int64_t positions, int64_t rows, S* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  if (bias != nullptr || p.activation != Activation::none)
    for (int64_t q = 0; q < positions; ++q)
      for (int64_t m = 0; m < rows; m += W) {
        T* v = tile + q * pitch + m;
        store(v, activate(bias ? load(v) + load(bias + m) : load(v), p.activation));
      }
  if (p.out_step == 1) return transpose(tile, pitch, positions, rows, out, p.out_row);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t q = 0; q < positions; ++q)
      from_compute(tile[q * pitch + m], out[m * p.out_row + q * p.out_step]);
}
