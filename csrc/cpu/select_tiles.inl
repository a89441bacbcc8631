// Which problems of bfloat16 go by tiles, and their functions; the others are left to vectors.

inline int64_t parts_of_grad_input(const GradInputArguments& a, Correlation<bfloat16>*& parts) {
  parts = static_cast<Correlation<bfloat16>*>(scratch(
      Slot::parts, sizeof(Correlation<bfloat16>) * smaller(a.geometry.stride, a.geometry.length)));
  int64_t count = 0;
  for_each_class<bfloat16>(a, false, [&](const Correlation<bfloat16>& p) {
    parts[count++] = of_taps_inside(p);
    return true;
  });
  return count;
}

// What tiles cost, against the products that vectors do meanwhile: prices were fitted to the times
// of 600 random problems for each function. The batch has no say: it must not show in the bits.
inline bool tiles_pay(const Correlation<bfloat16>* parts, int64_t part_count) {
  constexpr int64_t kGain = 16, kPacked = 3;
  const Correlation<bfloat16>& p = parts[0];
  const int64_t fold = taps_of_fold(parts, part_count);
  int64_t products = 0, tiles = 0, taps = 0;
  for (int64_t i = 0; i < part_count; ++i) {
    products += p.rows * p.channels * products_inside(parts[i]);
    tiles += divide_up(parts[i].taps, fold) * divide_up(parts[i].outputs, kTileColumns);
    taps += parts[i].taps;
  }
  tiles *= divide_up(p.rows, kTileRows) * divide_up(p.channels, kTileDepth);
  return products > 0 &&
         tiles * kTileSize * kTileColumns / kGain + kPacked * p.rows * p.channels * taps <=
             products;
}

inline bool tiles_pay(const WeightGradient<bfloat16>& p) {
  constexpr int64_t kGain = 10, kRest = 2;
  if (p.batch == 0 || p.outputs == 0) return false;
  const int64_t products =
      p.rows * p.channels * products_inside(p.tap_offset, p.taps, p.stride, p.length, p.outputs);
  const int64_t steps =
      divide_up(p.outputs, kTileDepth) + (p.outputs % kTileDepth == 0 ? 0 : kRest);
  const int64_t tiles =
      divide_up(p.rows, kTileColumns) * divide_up(p.channels, kTileRows) * p.taps * steps;
  return products > 0 && tiles * kTileSize * kTileColumns <= kGain * products;
}

// Two products of pairs take as long as four of floats where there are tiles; they save memory.
template <class Arguments>
const Kernels& vectors_for(const Arguments& a, Kernel (*Kernels::*kernel_of)(const Arguments&)) {
  const bool by_pairs = a.dtype == ScalarType::bfloat16 && a.geometry.batch > 0 &&
                        (avx512_bf16_kernels.*kernel_of)(a) == Kernel::depthwise;
  return by_pairs ? avx512_bf16_kernels : avx512_kernels;
}

// Call body with the problem, of the taps that read a part of the input, where tiles pay for it;
// false where they do not.
template <class Body>
bool forward_by_tiles(const ForwardArguments& a, const Body& body) {
  if (a.dtype != ScalarType::bfloat16) return false;
  const Correlation<bfloat16> p = of_taps_inside(forward_problem<bfloat16>(a));
  if (!tiles_pay(&p, 1)) return false;
  body(p);
  return true;
}
template <class Body>
bool grad_input_by_tiles(const GradInputArguments& a, const Body& body) {
  if (a.dtype != ScalarType::bfloat16 || a.geometry.length == 0) return false;
  Correlation<bfloat16>* parts;
  const int64_t count = parts_of_grad_input(a, parts);
  if (!tiles_pay(parts, count)) return false;
  body(parts, count);
  return true;
}
template <class Body>
bool grad_weight_by_tiles(const GradWeightArguments& a, const Body& body) {
  if (a.dtype != ScalarType::bfloat16) return false;
  const WeightGradient<bfloat16> p = weight_gradient_problem<bfloat16>(a);
  const WeightGradient<bfloat16> inside = of_taps_inside(p);
  if (!tiles_pay(inside)) return false;
  body(p, inside);
  return true;
}
constexpr auto kOnlyAsk = [](const auto&...) {};

void forward(const ForwardArguments& a) {
  const bool done = forward_by_tiles(a, [](const Correlation<bfloat16>& p) {
    if (p.batch > 0) correlate_tiles(&p, 1);
  });
  if (!done) vectors_for(a, &Kernels::forward_kernel).forward(a);
}
Kernel forward_kernel(const ForwardArguments& a) {
  return forward_by_tiles(a, kOnlyAsk) ? Kernel::tiles
                                       : vectors_for(a, &Kernels::forward_kernel).forward_kernel(a);
}

void grad_input(const GradInputArguments& a) {
  const bool done =
      grad_input_by_tiles(a, [](const Correlation<bfloat16>* parts, int64_t part_count) {
        if (parts[0].batch > 0) correlate_tiles(parts, part_count);
      });
  if (!done) vectors_for(a, &Kernels::grad_input_kernel).grad_input(a);
}
Kernel grad_input_kernel(const GradInputArguments& a) {
  return grad_input_by_tiles(a, kOnlyAsk)
             ? Kernel::tiles
             : vectors_for(a, &Kernels::grad_input_kernel).grad_input_kernel(a);
}

void grad_weight(const GradWeightArguments& a) {
  const bool done = grad_weight_by_tiles(
      a, [](const WeightGradient<bfloat16>& p, const WeightGradient<bfloat16>& inside) {
        sum_taps_inside(p, inside, grad_weight_tiles);
      });
  if (!done) vectors_for(a, &Kernels::grad_weight_kernel).grad_weight(a);
}
Kernel grad_weight_kernel(const GradWeightArguments& a) {
  return grad_weight_by_tiles(a, kOnlyAsk)
             ? Kernel::tiles
             : vectors_for(a, &Kernels::grad_weight_kernel).grad_weight_kernel(a);
}

void gradients(const GradientsArguments& a) {
  if (!grad_input_by_tiles(a.input, kOnlyAsk) && !grad_weight_by_tiles(a.weight, kOnlyAsk)) {
    const Kernels& kernels = vectors_for(a.input, &Kernels::grad_input_kernel);
    if (&kernels == &vectors_for(a.weight, &Kernels::grad_weight_kernel))
      return kernels.gradients(a);
  }
  grad_input(a.input);
  grad_weight(a.weight);
}
