// Few channels per group and short rows, which would fill no vectors of positions: a vector holds
// groups instead, and the rows of a sample are turned on their way in and out.

// A row of a turned tile has an element of each group of a block. With short rows, tiles stay in
// the L1 cache.
constexpr int kGroupVectors = 4;
template <class T>
constexpr int64_t kGroupPitch = kGroupVectors * kLanes<T>;

struct GroupBlocks {
  int64_t groups, lanes, vectors, count;

  GroupBlocks(int64_t groups, int64_t lanes)
      : groups(groups),
        lanes(lanes),
        vectors(divide_up(groups, lanes)),
        count(divide_up(vectors, kGroupVectors)) {}
  int64_t first(int64_t block) const { return vectors * block / count * lanes; }
  int64_t size(int64_t block) const { return smaller(groups, first(block + 1)) - first(block); }
};

// tile[e * pitch + g] = in[g * group_stride + e * stride] for g < groups, e < elements.
template <class S>
void turn_in(const S* in, int64_t group_stride, int64_t stride, int64_t groups, int64_t elements,
             Compute<S>* tile) {
  constexpr int64_t kPitch = kGroupPitch<Compute<S>>;
  // Where groups are next to each other, shuffles pick every so many elements.
  constexpr int64_t kShuffled = 6;
  if (stride == 1 && group_stride > kShuffled)
    return transpose(in, group_stride, groups, elements, tile, kPitch);
  for (int64_t e = 0; e < elements; ++e)
    stage_row(in + e * stride, group_stride, groups, 0, 1, tile + e * kPitch, groups);
}

// out[g * elements + e] = tile[e * pitch + g].
template <class S>
void turn_out(const Compute<S>* tile, int64_t groups, int64_t elements, S* out) {
  using T = Compute<S>;
  constexpr int64_t kPitch = kGroupPitch<T>;
  if (elements == 1) return copy_rows([&](int64_t) { return Row<T>{tile}; }, 1, 0, groups, out, 0);
  if (elements <= kMostInterleaved)
    return interleave(tile, kPitch, elements, groups * elements, out);
  transpose(tile, kPitch, elements, groups, out, elements);
}

// Calls body(VECTORS) with the number of vectors as a constant.
template <class Body>
CONVLM_INLINE void with_group_vectors(int64_t groups, int lanes, const Body& body) {
  static_assert(kGroupVectors == 4);
  switch (divide_up(groups, lanes)) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    default:
      return body(std::integral_constant<int, 4>{});
  }
}

// ---- forward and grad_input ----

// An output of each group, by the rows of tiles that its products and its bias are in.
struct GroupOutput {
  int64_t out, bias;
  int64_t in, weight;  // of the first channel, at no offset and of the first tap
  const int64_t* tap_offset;
  int64_t all_taps;
  TapRange taps;  // that read a part of the input
};

template <class T>
struct GroupSums {
  const T *in, *weight;
  int64_t channels, length;  // of the input
  const GroupOutput* outputs;
  int64_t count;
  Activation activation;
  T* out;
};

template <int VECTORS, class T>
void sum_groups(const GroupSums<T>& p) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kPitch = kGroupPitch<T>;
  for (int64_t o = 0; o < p.count; ++o) {
    const GroupOutput& output = p.outputs[o];
    Vector<T> sum[VECTORS] = {};
    const T* in = p.in + output.in * kPitch;
    const T* weight = p.weight + output.weight * kPitch;
    const auto add = [&](int64_t c, int64_t j) {
      const T* a = weight + (c * output.all_taps + j) * kPitch;
      const T* b = in + (c * p.length + output.tap_offset[j]) * kPitch;
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[v] += load(a + v * W) * load(b + v * W);
    };
    // In the order of plan_reduction().
    const TapRange taps = output.taps;
    if (output.all_taps > p.channels)
      for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t j = taps.first; j < taps.last; ++j) add(c, j);
    else
      for (int64_t j = taps.first; j < taps.last; ++j)
        for (int64_t c = 0; c < p.channels; ++c) add(c, j);
    const T* bias = p.weight + output.bias * kPitch;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      store(p.out + output.out * kPitch + v * W,
            activate(sum[v] + load(bias + v * W), p.activation));
  }
}

// `parts` are one forward, or all classes of one grad_input; `out` is where the first row begins.
template <class S>
void correlate_groups(const Correlation<S>* parts, int64_t part_count, S* out) {
  using T = Compute<S>;
  constexpr int64_t kPitch = kGroupPitch<T>;
  const Correlation<S>& p = parts[0];
  const GroupBlocks blocks(p.groups, kLanes<T>);
  int64_t output_count = 0, products = 0;
  for (int64_t i = 0; i < part_count; ++i) output_count += parts[i].rows * parts[i].outputs;
  GroupOutput* outputs =
      static_cast<GroupOutput*>(scratch(Slot::plan, sizeof(GroupOutput) * output_count));
  GroupOutput* output = outputs;
  for (int64_t i = 0; i < part_count; ++i) {
    const Correlation<S>& q = parts[i];
    for (int64_t m = 0; m < q.rows; ++m, products += q.products())
      for (int64_t t = 0; t < q.outputs; ++t)
        *output++ = {q.out - out + m * q.out_row + t * q.out_step,
                     q.bias == nullptr ? 0 : m,
                     t * q.in_step,
                     products,
                     q.tap_offset,
                     q.taps,
                     taps_inside(q, t, t + 1)};
  }
  for (int64_t o = 0; o < output_count; ++o) outputs[o].bias += products;

  // weights[block][product or, last, the bias][group]
  const int64_t weight_rows = products + p.rows, block_size = weight_rows * kPitch;
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * blocks.count * block_size));
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t first = blocks.first(block), groups = blocks.size(block);
    T* row = weights + block * block_size;
    for (int64_t i = 0; i < part_count; ++i)
      for (int64_t m = 0; m < parts[i].rows; ++m)
        for (int64_t c = 0; c < p.channels; ++c)
          for (int64_t j = 0; j < parts[i].taps; ++j, row += kPitch)
            stage_row(parts[i].weight + first * p.weight_group + m * parts[i].weight_row +
                          c * p.weight_channel + parts[i].tap_index[j] * p.weight_tap,
                      p.weight_group, groups, 0, 1, row, groups);
    for (int64_t m = 0; m < p.rows; ++m, row += kPitch)
      for (int64_t g = 0; g < groups; ++g) row[g] = bias_of(p, (first + g) * p.rows + m);
  }

  const int64_t in_size = p.channels * p.length * kPitch, out_size = p.out_group * kPitch;
  parallel_jobs(
      p.batch * blocks.count, products * p.outputs * kPitch, [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * in_size));
        T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * out_size));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t n = job / blocks.count, block = job % blocks.count;
          const int64_t first = blocks.first(block), groups = blocks.size(block);
          for (int64_t c = 0; c < p.channels; ++c)
            turn_in(p.in + n * p.in_batch + (first * p.channels + c) * p.in_channel,
                    p.channels * p.in_channel, p.in_position, groups, p.length,
                    staged + c * p.length * kPitch);
          with_group_vectors(groups, kLanes<T>, [&](auto vectors) {
            sum_groups<decltype(vectors)::value>(GroupSums<T>{staged, weights + block * block_size,
                                                              p.channels, p.length, outputs,
                                                              output_count, p.activation, tile});
          });
          turn_out(tile, groups, p.out_group, out + n * p.out_batch + first * p.out_group);
        }
      });
}

// ---- grad_weight ----

// A sum over `count` outputs of each group, in rows of tiles.
struct GroupDot {
  int64_t in, in_step, grad, count;
};

template <int VECTORS, class T>
void add_group_dots(const T* in, const T* grad, const GroupDot* dots, int64_t count, T* sums) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kPitch = kGroupPitch<T>;
  for (int64_t r = 0; r < count; ++r, sums += kPitch) {
    const GroupDot dot = dots[r];
    const T *a = in + dot.in * kPitch, *b = grad + dot.grad * kPitch;
    Vector<T> sum[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[v] = load(sums + v * W);
    for (int64_t i = 0; i < dot.count; ++i, a += dot.in_step * kPitch, b += kPitch)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[v] += load(a + v * W) * load(b + v * W);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(sums + v * W, sum[v]);
  }
}

template <class S>
void grad_weight_groups(const WeightGradient<S>& p) {
  using T = Compute<S>;
  constexpr int64_t kPitch = kGroupPitch<T>;
  const GroupBlocks blocks(p.groups, kLanes<T>);
  const int64_t products = p.rows * p.products(), in_rows = p.channels * p.length;
  // The bias' gradient is the product with a row of ones.
  const int64_t dot_count = products + (p.grad_bias == nullptr ? 0 : p.rows);
  GroupDot* dots = static_cast<GroupDot*>(scratch(Slot::plan, sizeof(GroupDot) * dot_count));
  GroupDot* dot = dots;
  for (int64_t m = 0; m < p.rows; ++m)
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t j = 0; j < p.taps; ++j) {
        const int64_t first = larger(0, divide_up(-p.tap_offset[j], p.stride));
        const int64_t last = smaller(p.outputs, divide_up(p.length - p.tap_offset[j], p.stride));
        *dot++ = {c * p.length + first * p.stride + p.tap_offset[j], p.stride,
                  m * p.outputs + first, last - first};
      }
  for (int64_t m = 0; dot < dots + dot_count; ++m) *dot++ = {in_rows, 0, m * p.outputs, p.outputs};

  const Units units = plan_units(p.batch, p.outputs, kGradWeightChain, p.groups * products, 1);
  // partial[piece][block][dot][group]
  const int64_t block_size = dot_count * kPitch;
  T* partial =
      static_cast<T*>(scratch(Slot::partial, sizeof(T) * units.pieces * blocks.count * block_size));
  parallel_jobs(
      units.pieces * blocks.count, p.batch * p.outputs * products * kPitch / units.pieces,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * (in_rows + 1) * kPitch));
        T* grad = static_cast<T*>(scratch(Slot::tile, sizeof(T) * p.rows * p.outputs * kPitch));
        T* sums = static_cast<T*>(scratch(Slot::lanes, sizeof(T) * block_size));
        for (int64_t g = 0; g < kPitch; ++g) staged[in_rows * kPitch + g] = 1;
        for (int64_t job = begin; job < end; ++job) {
          const int64_t piece = job / blocks.count, block = job % blocks.count;
          const int64_t first = blocks.first(block), groups = blocks.size(block);
          T* total = partial + job * block_size;
          for (int64_t i = 0; i < block_size; ++i) total[i] = 0;
          for (int64_t u = units.count * piece / units.pieces;
               u < units.count * (piece + 1) / units.pieces; ++u) {
            const Unit unit = unit_at(p, units, u);
            for (int64_t i = 0; i < block_size; ++i) sums[i] = 0;
            for (int64_t n = unit.first_sample; n < unit.first_sample + unit.samples; ++n) {
              for (int64_t c = 0; c < p.channels; ++c)
                turn_in(p.x + n * p.x_batch + (first * p.channels + c) * p.x_channel,
                        p.channels * p.x_channel, p.x_position, groups, p.length,
                        staged + c * p.length * kPitch);
              for (int64_t m = 0; m < p.rows; ++m)
                turn_in(p.grad_output + n * p.grad_batch + (first * p.rows + m) * p.grad_row,
                        p.rows * p.grad_row, p.grad_position, groups, p.outputs,
                        grad + m * p.outputs * kPitch);
              with_group_vectors(groups, kLanes<T>, [&](auto vectors) {
                add_group_dots<decltype(vectors)::value>(staged, grad, dots, dot_count, sums);
              });
            }
            for (int64_t i = 0; i < block_size; ++i) total[i] += sums[i];
          }
        }
      });

  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t first = blocks.first(block), groups = blocks.size(block);
    T* sums = partial + block * block_size;
    for (int64_t piece = 1; piece < units.pieces; ++piece)
      for (int64_t i = 0; i < block_size; ++i)
        sums[i] += sums[piece * blocks.count * block_size + i];
    turn_out(sums, groups, products, p.grad_weight + first * products);
    if (p.grad_bias != nullptr)
      turn_out(sums + products * kPitch, groups, p.rows, p.grad_bias + first * p.rows);
  }
}
