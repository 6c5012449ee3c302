// What fast MLP memories say to inputs that all memories of a row are given: the targets of those
// that are taught their own answers to the values (nl/nn/selfmod.py), without gradients.
#include "fast_write_parts.h"

namespace nl {
namespace {

// start and added weights, inputs | answers, as unit vectors if asked
template <class T>
struct Answers {
  const Plan& plan;
  const Memory& bank;
  Arena<T> arena;
  T *w2, *w1, *z, *room, *scale;

  explicit Answers(const Plan& p) : plan(p), bank(p.banks[0].memory) {
    const idx C = p.sizes.tokens;
    w2 = arena.take(bank.hidden * p.sizes.width), w1 = arena.take(bank.outputs * bank.hidden);
    z = arena.take(bank.hidden * C), room = arena.take(p.largest * p.largest),
    scale = arena.take(C);
  }

  void tell(void* const* t, idx row, bool unit) {
    const Sizes& s = plan.sizes;
    const idx K = s.width, C = s.tokens, F = bank.hidden, P = bank.outputs;
    const T* x = static_cast<const T*>(t[4]) + row * K * C;
    for (idx m = 0; m < bank.count; m++) {
      const idx head = (row % s.heads) * bank.count + m, own = row * bank.count + m;
      auto at = [&](int i, idx offset) { return static_cast<T*>(t[i]) + offset; };
      const T *start2 = at(0, head * F * K), *start1 = at(1, head * P * F);
      const T *added2 = at(2, own * F * K), *added1 = at(3, own * P * F);
      EACH (i, F * K) w2[i] = start2[i] + added2[i];
      EACH (i, P * F) w1[i] = start1[i] + added1[i];
      product<T>(z, C, F, C, K, rows_of((const T*)w2, K), rows_of(x, C), room, 1, false);
      activate(z, F * C, s.gelu);
      T* out = at(5, own * P * C);
      product<T>(out, C, P, C, F, rows_of((const T*)w1, F), rows_of((const T*)z, C), room, 1,
                 false);
      if (bank.skip)
        EACH (i, P * C) out[i] += x[i];
      if (!unit) continue;
      EACH (c, C) scale[c] = (T)NORM_EPS;
      add_products(scale, out, out, P, C);
      EACH (c, C) scale[c] = 1 / std::sqrt(scale[c]);
      for (idx p = 0; p < P; p++)
        EACH (c, C) out[p * C + c] *= scale[c];
    }
  }
};

template <class T>
void all_answers(const int64_t* numbers, void* const* tensors, int64_t threads) {
  const Plan plan(numbers + 1);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Answers<T> answers(plan);
#pragma omp for schedule(static)
    for (idx row = 0; row < plan.sizes.rows; row++) answers.tell(tensors, row, numbers[0] != 0);
  }
}

}  // namespace
}  // namespace nl

extern "C" void answers_f32(const int64_t* numbers, void* const* tensors, int64_t threads) {
  nl::all_answers<float>(numbers, tensors, threads);
}
extern "C" void answers_f64(const int64_t* numbers, void* const* tensors, int64_t threads) {
  nl::all_answers<double>(numbers, tensors, threads);
}
