// One chunk written into fast MLP memories, and the way back: nl/ops/fast_write.py in machine code.
//
// Names follow the equations there and nl/ops/fast_write_parts.py; `by_x` is the gradient of the
// loss by x. Rows (batch times heads) are independent and shared out among threads. In a row one
// memory after the other is written, so that what is between its inputs and its new weights stays
// in the cache. Matrices are features by tokens unless their comment says otherwise.
#include "fast_write_parts.h"

namespace nl {
namespace {

// One memory on its way to new weights.
template <class T>
struct Writer {
  const Sizes& s;
  idx K, C, F, P;
  Frame<T>& f;
  T *w2, *w1, *z, *a, *slope, *rest, *seen2, *back, *wanted;
  T *error, *x, *seen1, *taught, *right, *update, *shrink, *gram, *lower, *inverse;
  T *by_x, *by_a, *by_error, *by_right, *less, *scale, *along;
  const T *d2, *d1, *targets;
  const T clip;
  Rates<T>* rates;

  Writer(Arena<T>& arena, const Sizes& s_, idx hidden, idx outputs, Frame<T>& f_)
      : s(s_),
        K(s_.width),
        C(s_.tokens),
        F(hidden),
        P(outputs),
        f(f_),
        clip((T)s_.clip) {
    w2 = arena.take(F * K), w1 = arena.take(P * F);
    for (T** t : {&z, &a, &slope, &rest, &seen2, &back, &wanted, &x, &by_x, &by_a})
      *t = arena.take(F * C);
    for (T** t : {&error, &seen1, &taught, &right, &update, &by_error, &by_right})
      *t = arena.take(P * C);
    for (T** t : {&gram, &lower, &inverse, &less}) *t = arena.take(C * C);
    for (T** t : {&shrink, &scale, &along}) *t = arena.take(C);
  }

  View<T> own(const T* at, idx row) const { return rows_of(at, row); }

  void times(T* out, idx row, idx m, idx n, idx k, View<T> left, View<T> right_, T alpha,
             bool add) {
    product<T>(out, row, m, n, k, left, right_, f.room, alpha, add);
  }

  void forward(const T* start2, const T* start1, const T* added2, const T* added1,
               const T* targets_, Rates<T>& rates_, bool skip) {
    rates = &rates_;
    d2 = s.anchored ? added2 : w2, d1 = s.anchored ? added1 : w1, targets = targets_;
    EACH (i, F * K) w2[i] = start2[i] + added2[i];
    EACH (i, P * F) w1[i] = start1[i] + added1[i];
    times(z, C, F, C, K, own(w2, K), own(f.keys, C), 1, false);
    slopes(z, a, slope, rest, F * C, s.gelu);
    if (s.dot)
      EACH (i, P * C) error[i] = -targets[i];
    else {
      times(error, C, P, C, F, own(w1, F), own(a, C), 1, false);
      EACH (i, P * C) error[i] -= targets[i];
      if (skip)
        EACH (i, P * C) error[i] += f.keys[i];
    }
    times(back, C, F, C, P, own(w1, F).turned(), own(error, C), 1, false);
    if (s.anchored) times(seen2, C, F, C, K, own(d2, K), own(f.keys, C), 1, false);
    const T* seen = s.anchored ? seen2 : z;
    for (idx i = 0; i < F; i++)
      EACH (t, C) {
        T asked = back[i * C + t] * slope[i * C + t];
        asked = asked > clip ? clip : asked;
        asked = asked < -clip ? -clip : asked;
        wanted[i * C + t] = asked + seen[i * C + t] * f.before[t];
      }
    if (s.output != DECAY) second_layer();
  }

  // The delta rule of the second layer: what every token adds, when those before it are known.
  void second_layer() {
    EACH (t, C) shrink[t] = (T)NORM_EPS;
    add_products(shrink, a, a, F, C);
    EACH (t, C) shrink[t] = 1 / std::sqrt(shrink[t]);
    for (idx i = 0; i < F; i++)
      EACH (t, C) x[i * C + t] = a[i * C + t] * shrink[t];
    times(seen1, C, P, C, F, own(d1, F), own(x, C), 1, false);
    const T less_seen = s.output == DELTA_ERROR;
    const bool divided = s.output == DELTA;
    for (idx p = 0; p < P; p++)
      EACH (t, C) {
        const T scaled = divided ? error[p * C + t] / shrink[t] : error[p * C + t] * shrink[t];
        const T told = scaled + seen1[p * C + t] * (f.before[t] - less_seen);
        taught[p * C + t] = told;
        right[p * C + t] = told * rates->rate[t];
      }
    times(gram, C, C, C, F, own(x, C).turned(), own(x, C), 1, false);
    EACH (i, C * C) lower[i] = gram[i] * rates->pull[i];
    if (P <= FEW_OUTPUTS) {
      std::memcpy(update, right, P * C * sizeof(T));
      solve_few(update, lower, P, C, false);
    } else {
      unit_lower_inverse(inverse, lower, C, f.room, f.part);
      times(update, C, P, C, C, own(right, C), own(inverse, C).turned(), 1, false);
    }
  }

  void written(T* hidden, T* output) {
    EACH (i, F * K) hidden[i] = d2[i] * f.total;
    times(hidden, K, F, K, C, own(wanted, C), own(rates->spread, K), -1, true);
    EACH (i, P * F) output[i] = d1[i] * f.total;
    const bool plain = s.output == DECAY;
    const T* change = plain ? error : update;
    for (idx p = 0; p < P; p++)
      EACH (t, C) right[p * C + t] = change[p * C + t] * f.after[t] * (plain ? rates->rate[t] : 1);
    times(output, F, P, F, C, own(right, C), own(plain ? a : x, C).turned(), -1, true);
  }

  // Gradients: of the start weights' own part, of what was added, of the targets.
  void adjoint(const T* by_hidden, const T* by_output, bool skip, T* to_w2, T* to_w1, T* to_d2,
               T* to_d1, T* to_targets) {
    f.by_total += inner(by_output, d1, P * F) + inner(by_hidden, d2, F * K);
    EACH (i, P * F) to_d1[i] = by_output[i] * f.total;
    if (s.output == DECAY) decay_backward(by_output);
    else delta_backward(by_output, to_d1);
    times(rates->by_spread, K, C, K, F, own(wanted, C).turned(), own(by_hidden, K), -1, true);
    T *by_wanted = wanted, *pulled = f.wide;  // what was wanted is read no more
    times(by_wanted, C, F, C, K, own(by_hidden, K), own(rates->spread_turned, C), -1, false);
    first_decay_backward(by_hidden, by_wanted, pulled, to_d2);
    EACH (i, F * C) {
      const T asked = back[i] * slope[i];
      if (asked > clip || asked < -clip) by_wanted[i] = 0;
      x[i] = by_wanted[i] * slope[i];
    }
    T* by_back = x;
    times(by_error, C, P, C, F, own(w1, F), own(by_back, C), 1, true);
    times(to_w1, F, P, F, C, own(error, C), own(by_back, C).turned(), 1, false);
    if (!s.dot) {
      times(to_w1, F, P, F, C, own(by_error, C), own(a, C).turned(), 1, true);
      times(by_a, C, F, C, P, own(w1, F).turned(), own(by_error, C), 1, true);
      if (skip)
        EACH (i, P * C) f.by_keys[i] += by_error[i];
    }
    T* by_z = by_a;
    if (s.gelu)
      EACH (i, F * C)
        by_z[i] = by_a[i] * slope[i] + by_wanted[i] * back[i] * rest[i] * (2 - z[i] * z[i]);
    else
      EACH (i, F * C)
        by_z[i] = by_a[i] * slope[i] + by_wanted[i] * back[i] * (2 * slope[i] - a[i]) * rest[i];
    times(to_w2, K, F, K, C, own(by_z, C), own(f.keys_turned, K), 1, false);
    times(f.by_keys, C, K, C, F, own(w2, K).turned(), own(by_z, C), 1, true);
    EACH (i, F * K) to_d2[i] += to_w2[i];
    EACH (i, P * F) to_d1[i] += to_w1[i];
    EACH (i, P * C) to_targets[i] = -by_error[i];
  }

  // Through seen = D2 k, which decays until a token comes.
  void first_decay_backward(const T* by_hidden, const T* by_wanted, T* pulled, T* to_d2) {
    times(pulled, C, K, C, F, own(d2, K).turned(), own(by_wanted, C), 1, false);
    for (idx k = 0; k < K; k++)
      EACH (t, C) {
        f.by_before[t] += pulled[k * C + t] * f.keys[k * C + t];
        f.by_keys[k * C + t] += pulled[k * C + t] * f.before[t];
      }
    EACH (i, F * K) to_d2[i] = by_hidden[i] * f.total;
    for (idx i = 0; i < F; i++)
      EACH (t, C) pulled[i * C + t] = by_wanted[i * C + t] * f.before[t];
    times(to_d2, K, F, K, C, own(pulled, C), own(f.keys_turned, K), 1, true);
  }

  void decay_backward(const T* by_output) {
    times(by_right, C, P, C, F, own(by_output, F), own(a, C), -1, false);
    EACH (t, C) scale[t] = 0;
    add_products(scale, by_right, error, P, C);
    EACH (t, C) {
      f.by_after[t] += scale[t] * rates->rate[t];
      rates->by_rate[t] += scale[t] * f.after[t];
    }
    for (idx p = 0; p < P; p++)
      EACH (t, C) {
        const T step = f.after[t] * rates->rate[t];
        right[p * C + t] = error[p * C + t] * step;
        by_error[p * C + t] = by_right[p * C + t] * step;
      }
    times(by_a, C, F, C, P, own(by_output, F).turned(), own(right, C), -1, false);
  }

  void delta_backward(const T* by_output, T* to_d1) {
    T* by_update = by_error;
    times(by_update, C, P, C, F, own(by_output, F), own(x, C), -1, false);
    for (idx p = 0; p < P; p++)
      EACH (t, C) {
        f.by_after[t] += by_update[p * C + t] * update[p * C + t];
        by_update[p * C + t] *= f.after[t];
        right[p * C + t] = update[p * C + t] * f.after[t];
      }
    times(by_x, C, F, C, P, own(by_output, F).turned(), own(right, C), -1, false);
    if (P <= FEW_OUTPUTS) {
      std::memcpy(by_right, by_update, P * C * sizeof(T));
      solve_few(by_right, lower, P, C, true);
    } else times(by_right, C, P, C, C, own(by_update, C), own(inverse, C), 1, false);
    system_backward();
    add_products(rates->by_rate, by_right, taught, P, C);
    const T less_seen = s.output == DELTA_ERROR;
    T *by_taught = by_right, *by_seen = right;
    for (idx p = 0; p < P; p++)
      EACH (t, C) {
        const T by = by_taught[p * C + t] * rates->rate[t];
        by_taught[p * C + t] = by;
        f.by_before[t] += by * seen1[p * C + t];
        by_seen[p * C + t] = by * (f.before[t] - less_seen);
      }
    times(to_d1, F, P, F, C, own(by_seen, C), own(x, C).turned(), 1, true);
    times(by_x, C, F, C, P, own(d1, F).turned(), own(by_seen, C), 1, true);
    norm_backward(by_taught);
  }

  // From the right side of U = R X^T to the system (L' = -R'^T U) and its inner products.
  void system_backward() {
    times(less, C, C, C, P, own(by_right, C).turned(), own(update, C), 1, false);
    for (idx t = 0; t < C; t++) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (idx i = 0; i < C; i++) {
        const T by_pull = less[t * C + i] * gram[t * C + i] * f.ratio[t * C + i];
        sum += by_pull;
        f.by_log_ratio[t * C + i] -= by_pull * rates->rate[t];
        less[t * C + i] *= rates->pull[t * C + i];
      }
      rates->by_rate[t] -= sum;
    }
    turn(gram, C, less, C, C, C);
    EACH (i, C * C) gram[i] += less[i];
    times(by_x, C, F, C, C, own(x, C), own(gram, C), -1, true);
  }

  // Gradients of a and the error; |a| is in x = a / |a| and beside the error.
  void norm_backward(const T* by_taught) {
    for (T* t : {scale, along}) std::memset(t, 0, C * sizeof(T));
    add_products(scale, by_taught, error, P, C);
    add_products(along, by_x, x, F, C);
    const bool divided = s.output == DELTA;
    EACH (t, C)
      along[t] = divided ? scale[t] - along[t] * shrink[t]
                         : -(scale[t] * shrink[t] + along[t]) * shrink[t];
    for (idx i = 0; i < F; i++)
      EACH (t, C) by_a[i * C + t] = by_x[i * C + t] * shrink[t] + x[i * C + t] * along[t];
    for (idx p = 0; p < P; p++)
      EACH (t, C)
        by_error[p * C + t] =
            divided ? by_taught[p * C + t] / shrink[t] : by_taught[p * C + t] * shrink[t];
  }
};

// The tensors of one kind, at one row.
template <class T>
struct Cursor {
  void* const* at;
  T* next(idx offset) { return static_cast<T*>(*at++) + offset; }
};

// Everything one thread needs to write rows.
template <class T>
struct Chunk {
  const Plan& plan;
  Arena<T> arena;
  Frame<T> frame;
  std::vector<Rates<T>> rates;
  std::vector<Writer<T>> writers;

  explicit Chunk(const Plan& p) : plan(p), frame(arena, p.sizes, p.largest) {
    for (bool same : p.same) rates.emplace_back(arena, p.sizes, same);
    for (const Memory& kind : p.kinds)
      writers.emplace_back(arena, p.sizes, kind.hidden, kind.outputs, frame);
  }

  // Up to the banks; gives where their tensors begin.
  Cursor<T> open(void* const* tensors, idx row, bool keep) {
    const Sizes& s = plan.sizes;
    Cursor<T> given{tensors};
    const T* keys = given.next(row * s.width * s.tokens);
    frame.open(keys, given.next(row * s.tokens), keep);
    for (Rates<T>& r : rates) {
      const T* rate = given.next(row * s.tokens);
      r.open(frame, rate, r.same ? rate : given.next(row * s.tokens), keep);
    }
    return given;
  }

  // Memory m of a bank up to what it adds.
  Writer<T>& forward(const Bank& which, void* const* five, idx row, idx m) {
    const Sizes& s = plan.sizes;
    const Memory& bank = which.memory;
    const idx first = bank.hidden * s.width, second = bank.outputs * bank.hidden;
    const idx head = (row % s.heads) * bank.count + m, own = row * bank.count + m;
    auto at = [&](int i, idx offset) { return static_cast<const T*>(five[i]) + offset; };
    Writer<T>& writer = writers[which.writer];
    writer.forward(at(0, head * first), at(1, head * second), at(2, own * first),
                   at(3, own * second), at(4, own * bank.outputs * s.tokens), rates[which.group],
                   bank.skip);
    return writer;
  }

  void write(void* const* tensors, idx row) {
    void* const* five = open(tensors, row, false).at;
    void* const* made = five + 5 * plan.banks.size();
    for (std::size_t b = 0; b < plan.banks.size(); b++, five += 5, made += 2) {
      const Memory& bank = plan.banks[b].memory;
      for (idx m = 0; m < bank.count; m++) {
        const idx own = row * bank.count + m;
        Writer<T>& writer = forward(plan.banks[b], five, row, m);
        writer.written(static_cast<T*>(made[0]) + own * bank.hidden * plan.sizes.width,
                       static_cast<T*>(made[1]) + own * bank.outputs * bank.hidden);
      }
    }
  }

  void go_back(void* const* tensors, idx row) {
    const Sizes& s = plan.sizes;
    const std::size_t count = plan.banks.size();
    void* const* five = open(tensors, row, true).at;
    void* const* grads = five + 5 * count;
    void* const* shared = grads + 2 * count;
    void* const* made = shared + 2 + plan.rates;
    for (std::size_t b = 0; b < count; b++, five += 5, grads += 2, made += 5) {
      const Memory& bank = plan.banks[b].memory;
      for (idx m = 0; m < bank.count; m++) {
        const idx own = row * bank.count + m;
        const idx first = own * bank.hidden * s.width, second = own * bank.outputs * bank.hidden;
        auto at = [](void* tensor, idx offset) { return static_cast<T*>(tensor) + offset; };
        Writer<T>& writer = forward(plan.banks[b], five, row, m);
        writer.adjoint(at(grads[0], first), at(grads[1], second), bank.skip, at(made[0], first),
                       at(made[1], second), at(made[2], first), at(made[3], second),
                       at(made[4], own * bank.outputs * s.tokens));
      }
    }
    Cursor<T> out{shared};
    T *to_keys = out.next(row * s.width * s.tokens), *to_log = out.next(row * s.tokens);
    for (Rates<T>& r : rates) {
      T* to_rate = out.next(row * s.tokens);
      r.close(frame, to_rate, r.same ? nullptr : out.next(row * s.tokens));
    }
    frame.close(to_keys, to_log);
  }
};

template <class T>
void all_rows(const int64_t* numbers, void* const* tensors, int64_t threads, bool back) {
  const Plan plan(numbers);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Chunk<T> chunk(plan);
#pragma omp for schedule(static)
    for (idx row = 0; row < plan.sizes.rows; row++)
      back ? chunk.go_back(tensors, row) : chunk.write(tensors, row);
  }
}

}  // namespace
}  // namespace nl

#define ENTRY(name, type, back)                                                         \
  extern "C" void name(const int64_t* numbers, void* const* tensors, int64_t threads) { \
    nl::all_rows<type>(numbers, tensors, threads, back);                                \
  }
ENTRY(write_f32, float, false)
ENTRY(write_f64, double, false)
ENTRY(write_back_f32, float, true)
ENTRY(write_back_f64, double, true)
