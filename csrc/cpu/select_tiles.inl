// Which problems of bfloat16 go by tiles, and their functions; the others are left to vectors.

// What tiles cost, against the products that vectors do meanwhile: prices were fitted to the times
// of 600 random problems for each function. The batch has no say: it must not show in the bits.

// The problems, of the taps that read a part of the input.
inline Correlation<bfloat16> forward_of_taps_inside(const ForwardArguments& a) {
  return of_taps_inside(forward_problem<bfloat16>(a));
}
inline WeightGradient<bfloat16> weight_gradient_of_taps_inside(const GradWeightArguments& a) {
  return of_taps_inside(weight_gradient_problem<bfloat16>(a));
}
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
  int64_t products = 0;
  for (int64_t j = 0; j < p.taps; ++j)
    products += outputs_inside(p.tap_offset[j], p.stride, p.length, p.outputs).count();
  products *= p.rows * p.channels;
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

inline bool forward_by_tiles(const ForwardArguments& a) {
  if (a.dtype != ScalarType::bfloat16) return false;
  const Correlation<bfloat16> p = forward_of_taps_inside(a);
  return tiles_pay(&p, 1);
}
inline bool grad_input_by_tiles(const GradInputArguments& a) {
  if (a.dtype != ScalarType::bfloat16 || a.geometry.length == 0) return false;
  Correlation<bfloat16>* parts;
  const int64_t count = parts_of_grad_input(a, parts);
  return tiles_pay(parts, count);
}
inline bool grad_weight_by_tiles(const GradWeightArguments& a) {
  return a.dtype == ScalarType::bfloat16 && tiles_pay(weight_gradient_of_taps_inside(a));
}

void forward(const ForwardArguments& a) {
  if (!forward_by_tiles(a)) return vectors_for(a, &Kernels::forward_kernel).forward(a);
  const Correlation<bfloat16> p = forward_of_taps_inside(a);
  if (p.batch > 0) correlate_tiles(&p, 1);
}
Kernel forward_kernel(const ForwardArguments& a) {
  return forward_by_tiles(a) ? Kernel::tiles
                             : vectors_for(a, &Kernels::forward_kernel).forward_kernel(a);
}

void grad_input(const GradInputArguments& a) {
  if (!grad_input_by_tiles(a)) return vectors_for(a, &Kernels::grad_input_kernel).grad_input(a);
  Correlation<bfloat16>* parts;
  const int64_t count = parts_of_grad_input(a, parts);
  if (a.geometry.batch > 0) correlate_tiles(parts, count);
}
Kernel grad_input_kernel(const GradInputArguments& a) {
  return grad_input_by_tiles(a) ? Kernel::tiles
                                : vectors_for(a, &Kernels::grad_input_kernel).grad_input_kernel(a);
}

void grad_weight(const GradWeightArguments& a) {
  if (!grad_weight_by_tiles(a)) return vectors_for(a, &Kernels::grad_weight_kernel).grad_weight(a);
  const WeightGradient<bfloat16> p = weight_gradient_problem<bfloat16>(a);
  WeightGradient<bfloat16> inside = of_taps_inside(p);
  if (inside.taps == p.taps) return grad_weight_tiles(p);
  inside.grad_weight = static_cast<bfloat16*>(
      scratch(Slot::inside, sizeof(bfloat16) * p.groups * p.rows * inside.products()));
  grad_weight_tiles(inside);
  spread_taps(p, inside);
}
Kernel grad_weight_kernel(const GradWeightArguments& a) {
  return grad_weight_by_tiles(a)
             ? Kernel::tiles
             : vectors_for(a, &Kernels::grad_weight_kernel).grad_weight_kernel(a);
}

void gradients(const GradientsArguments& a) {
  if (!grad_input_by_tiles(a.input) && !grad_weight_by_tiles(a.weight)) {
    const Kernels& kernels = vectors_for(a.input, &Kernels::grad_input_kernel);
    if (&kernels == &vectors_for(a.weight, &Kernels::grad_weight_kernel))
      return kernels.gradients(a);
  }
  grad_input(a.input);
  grad_weight(a.weight);
}
