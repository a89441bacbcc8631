// The whole loop of generation: a step, a draw from its outputs, and the drawn token is the next
// step's input.

// The likeliest of `count` tokens, the first of equals; -1 where one is NaN.
template <class T>
int64_t likeliest(const T* logits, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (logits[i] != logits[i]) return -1;
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

// Draws one of `count` tokens: the first at which the sum of the likelihoods passes `uniform` of
// the whole. Only the top_k likeliest take part, and of these the fewest that together have top_p
// of the likelihood. Overwrites the logits; -1 where there is no distribution: a NaN, a positive
// infinity, or nothing but negative ones.
template <class T>
int64_t draw(T* logits, int64_t count, double temperature, int64_t top_k, double top_p,
             double uniform) {
  const int64_t best = likeliest(logits, count);
  if (best < 0) return best;
  const T largest = logits[best];
  if (!(largest - largest == 0)) return -1;
  if (T(temperature) == 0) return best;
  for (int64_t i = 0; i < count; i += kLanes<T>)
    store(logits + i, exponential<T>((load(logits + i) - largest) / T(temperature)));
  const int64_t* order = nullptr;
  if (top_k < count || top_p < 1) order = descending_order(logits, count);
  const int64_t kept = smaller(top_k, count);
  const auto likelihood = [&](int64_t i) { return double(logits[order ? order[i] : i]); };
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) total += likelihood(i);
  if (top_p < 1) {
    const double enough = top_p * total;
    total = 0;
    for (int64_t i = 0; i < kept && (i == 0 || total < enough); ++i) total += likelihood(i);
  }
  double sum = 0;
  int64_t last = best;
  for (int64_t i = 0; i < kept; ++i) {
    if (likelihood(i) == 0) continue;
    last = order ? order[i] : i;
    sum += likelihood(i);
    if (sum > uniform * total) break;
  }
  return last;
}

// The samples [begin, end), each until its stop token, or until there is nothing to draw from. A
// stopped sample's state stays as it was before that token.
template <class S, class Weight>
void generate_block(const GenerateArguments& a, const StepBuffers<Compute<S>>& buffers,
                    int64_t begin, int64_t end) {
  using T = Compute<S>;
  int64_t running[kStepSamples];
  int64_t count = end - begin;
  for (int64_t i = 0; i < count; ++i) running[i] = begin + i;
  const T* bias = static_cast<const T*>(a.logit_bias);
  for (int64_t step = 0; step < a.steps && count > 0; ++step) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t n = running[i];
      const int64_t token = step > 0 ? a.generated[n * a.steps + step - 1] : token_of(a.step, n);
      embed<S>(a.step, token, buffers.x[i]);
    }
    step_block<S, Weight>(a.step, buffers, running, count);
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t n = running[i];
      T* logits = buffers.x[i];
      if (bias != nullptr)
        for (int64_t c = 0; c < a.vocab; ++c) logits[c] += bias[c];
      const int64_t token =
          draw(logits, a.vocab, a.temperature, a.top_k, a.top_p, a.uniform[n * a.steps + step]);
      int64_t* generated = a.generated + n * a.steps;
      generated[step] = token;
      if (token >= 0 && token != a.stop)
        running[left++] = n;
      else
        for (int64_t later = step + 1; later < a.steps; ++later) generated[later] = token;
    }
    count = left;
  }
}

template <class S, class Weight>
struct GenerateAll {
  static void run(const GenerateArguments& a) {
    const int64_t cost = a.steps * multiply_adds(a.step);
    parallel_jobs(a.step.batch, cost, [&](int64_t begin, int64_t end) {
      const StepBuffers<Compute<S>> buffers = step_buffers<Compute<S>>(a.step);
      for (int64_t first = begin; first < end; first += kStepSamples)
        generate_block<S, Weight>(a, buffers, first, smaller(first + kStepSamples, end));
    });
  }
};

void generate(const GenerateArguments& arguments) {
  for_step_dtypes<GenerateAll>(arguments.step, arguments);
}
