// Levels of the continuum memory with SiLU and RMS norm: nl/ops/level.py in machine code.
//
// Names follow the equations there; `by_x` is the gradient of the loss by x. Matrices are tokens by
// features, weights as they are there. Every row has weights of its own, the meta weights minus a
// rate times its fast ones, which are made in the cache and not kept.
#include <limits>

#include "elementwise.h"

namespace nl {
namespace {

// What a call says beside its tensors.
struct Sizes {
  idx rows, tokens, width, hidden;
  double eps;
  int levels;
  double scales[2], lost, clip;

  explicit Sizes(const int64_t* n)
      : rows(n[0]),
        tokens(n[1]),
        width(n[2]),
        hidden(n[3]),
        eps(real(n[4])),
        levels((int)n[5]),
        scales{real(n[6]), real(n[7])},
        lost(real(n[8])),
        clip(real(n[9])) {}
};

// One row: what it reads, and room for what is between.
template <class T>
struct Level {
  const Sizes s;
  T *up, *down, *normal, *inverse, *a, *slope, *by_hidden, *pulled, *room;

  Level(Arena<T>& arena, const Sizes& sizes) : s(sizes) {
    const idx weights = s.hidden * s.width;
    for (T** t : {&up, &down, &room}) *t = arena.take(weights);
    for (T** t : {&normal, &pulled}) *t = arena.take(s.tokens * s.width);
    for (T** t : {&a, &slope, &by_hidden}) *t = arena.take(s.tokens * s.hidden);
    inverse = arena.take(s.tokens);
  }

  // The weights in force: meta, or meta - rate fast in `made`.
  const T* in_force(T* made, const T* meta, const T* fast, const T* rate) {
    if (!fast) return meta;
    const T own = *rate;
    EACH (i, s.hidden * s.width) made[i] = meta[i] - own * fast[i];
    return made;
  }

  void normalize(const T* x) {
    const idx D = s.width;
    for (idx t = 0; t < s.tokens; t++) {
      const T* row = x + t * D;
      const T scale = 1 / std::sqrt(inner(row, row, D) / D + (T)s.eps);
      inverse[t] = scale;
      EACH (d, D) normal[t * D + d] = row[d] * scale;
    }
  }

  void make_a(const T* z, bool and_slope) {
    const idx numbers = s.tokens * s.hidden;
    std::memcpy(a, z, numbers * sizeof(T));
    and_slope ? activate(a, slope, numbers, false) : activate(a, numbers, false);
  }

  // tokens x n = tokens x k, times (k x n).
  void through(T* out, const T* x, idx n, idx k, View<T> weights) {
    product<T>(out, n, s.tokens, n, k, rows_of(x, k), weights, room, 1, false);
  }

  // m x n = (tokens x m)^T (tokens x n).
  void outer(T* out, const T* left, const T* right, idx m, idx n, bool add = false) {
    product<T>(out, n, m, n, s.tokens, rows_of(left, m).turned(), rows_of(right, n), room, 1, add);
  }

  void read(const T* x, const T* up_, const T* down_, T* y, T* z) {
    const idx D = s.width, F = s.hidden;
    normalize(x);
    through(z, normal, F, D, rows_of(up_, D).turned());
    make_a(z, false);
    through(y, a, D, F, rows_of(down_, F).turned());
  }

  // The gradient of x from that of its norm, in place.
  void norm_backward(T* grad) {
    const idx D = s.width;
    for (idx t = 0; t < s.tokens; t++) {
      T *by = grad + t * D, *n = normal + t * D;
      const T along = inner(by, n, D) / D, scale = inverse[t];
      EACH (d, D) by[d] = (by[d] - n[d] * along) * scale;
    }
  }

  void go_back(const T* x, const T* z, const T* up_, const T* down_, const T* by_y, const T* more_z,
               T* by_x, T* by_up, T* by_down) {
    const idx D = s.width, F = s.hidden, numbers = s.tokens * F;
    normalize(x);
    make_a(z, true);
    if (by_y) {
      through(by_hidden, by_y, F, D, rows_of(down_, F));
      outer(by_down, by_y, a, D, F);
      EACH (i, numbers) by_hidden[i] *= slope[i];
    } else {
      std::memset(by_hidden, 0, numbers * sizeof(T));
      std::memset(by_down, 0, D * F * sizeof(T));
    }
    if (more_z)
      EACH (i, numbers) by_hidden[i] += more_z[i];
    through(by_x, by_hidden, D, F, rows_of(up_, D));
    outer(by_up, by_hidden, normal, F, D);
    norm_backward(by_x);
  }
};

// Tensors by their place in a call, at a row.
template <class T>
struct Given {
  void* const* tensors;
  idx row;
  T* operator()(int place, idx size) const {
    return tensors[place] ? static_cast<T*>(tensors[place]) + row * size : nullptr;
  }
  const T* shared(int place) const { return static_cast<const T*>(tensors[place]); }
};

// x, up, down, fast_up, fast_down, rates of both | y, z
template <class T>
void branch(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx weights = s.hidden * s.width, wide = s.tokens * s.width, thin = s.tokens * s.hidden;
  const T* up = level.in_force(level.up, at.shared(1), at(3, weights), at.shared(5));
  const T* down = level.in_force(level.down, at.shared(2), at(4, weights), at.shared(6));
  level.read(at(0, wide), up, down, at(7, wide), at(8, thin));
}

// as above but z in front of the weights, gradients of y and z | x, up, down, inner products
template <class T>
void branch_back(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx weights = s.hidden * s.width, wide = s.tokens * s.width, thin = s.tokens * s.hidden;
  const T *fast_up = at(4, weights), *fast_down = at(5, weights);
  const T* up = level.in_force(level.up, at.shared(2), fast_up, at.shared(6));
  const T* down = level.in_force(level.down, at.shared(3), fast_down, at.shared(7));
  T *by_up = at(11, weights), *by_down = at(12, weights), *along = at(13, 2);
  level.go_back(at(0, wide), at(1, thin), up, down, at(8, wide), at(9, thin), at(10, wide), by_up,
                by_down);
  along[0] = fast_up ? inner((const T*)by_up, fast_up, weights) : 0;
  along[1] = fast_down ? inner((const T*)by_down, fast_down, weights) : 0;
}

// z, signal, down, fast_down, rate | hidden signal
template <class T>
void hidden_signal(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx thin = s.tokens * s.hidden;
  const T* down = level.in_force(level.down, at.shared(2), at(3, s.hidden * s.width), at.shared(4));
  T* out = at(5, thin);
  level.make_a(at(0, thin), true);
  level.through(out, at(1, s.tokens * s.width), s.hidden, s.width, rows_of(down, s.hidden));
  EACH (i, thin) out[i] *= level.slope[i];
}

// x, signal, hidden signal, up, fast_up, rate | what the level below is told
template <class T>
void pull_back(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx wide = s.tokens * s.width;
  const T* up = level.in_force(level.up, at.shared(3), at(4, s.hidden * s.width), at.shared(5));
  const T* signal = at(1, wide);
  T* out = at(6, wide);
  level.normalize(at(0, wide));
  level.through(out, at(2, s.tokens * s.hidden), s.width, s.hidden, rows_of(up, s.width));
  level.norm_backward(out);
  EACH (i, wide) out[i] += signal[i];
}

// x, z, signal, hidden signal | gradients of up and down
template <class T>
void gradients(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx weights = s.hidden * s.width, wide = s.tokens * s.width, thin = s.tokens * s.hidden;
  level.normalize(at(0, wide));
  level.make_a(at(1, thin), false);
  level.outer(at(4, weights), at(3, thin), level.normal, s.hidden, s.width);
  level.outer(at(5, weights), at(2, wide), level.a, s.width, s.hidden);
}

// The weights of one level of a chain: up, down, fast_up, fast_down, logarithms of both rates.
template <class T>
struct Link {
  static constexpr int PLACES = 5;
  const T *up, *down, *fast_up, *fast_down;
  T rates[2];

  Link(const Given<T>& at, int place, const Sizes& s)
      : up(at.shared(place)),
        down(at.shared(place + 1)),
        fast_up(at(place + 2, s.hidden * s.width)),
        fast_down(at(place + 3, s.hidden * s.width)) {
    for (int side : {0, 1}) rates[side] = std::exp(at.shared(place + 4)[side]) * (T)s.scales[side];
  }

  const T* up_in_force(Level<T>& level) const {
    return level.in_force(level.up, up, fast_up, rates);
  }
  const T* down_in_force(Level<T>& level) const {
    return level.in_force(level.down, down, fast_down, rates + 1);
  }
};

// x, links | of each level what it makes of its input, residual included, and z
template <class T>
void chain(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx wide = s.tokens * s.width;
  const T* x = at(0, wide);
  for (int l = 0; l < s.levels; l++) {
    const Link<T> link(at, 1 + Link<T>::PLACES * l, s);
    const int made = 1 + Link<T>::PLACES * s.levels + 2 * l;
    T* out = at(made, wide);
    level.read(x, link.up_in_force(level), link.down_in_force(level), out,
               at(made + 1, s.tokens * s.hidden));
    EACH (i, wide) out[i] += x[i];
    x = out;
  }
}

// links, inputs and z of all, gradient of the result | of x; of each up, down, log rates
template <class T>
void chain_back(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx weights = s.hidden * s.width, wide = s.tokens * s.width, thin = s.tokens * s.hidden;
  const int tokens = Link<T>::PLACES * s.levels, result = tokens + 2 * s.levels;
  T* by = at(result + 1, wide);
  std::memcpy(by, at(result, wide), wide * sizeof(T));
  for (int l = s.levels - 1; l >= 0; l--) {
    const Link<T> link(at, Link<T>::PLACES * l, s);
    const int made = result + 2 + 3 * l;
    T *by_up = at(made, weights), *by_down = at(made + 1, weights), *by_rates = at(made + 2, 2);
    level.go_back(at(tokens + l, wide), at(tokens + s.levels + l, thin), link.up_in_force(level),
                  link.down_in_force(level), by, (const T*)nullptr, level.pulled, by_up, by_down);
    const T along[] = {link.fast_up ? inner((const T*)by_up, link.fast_up, weights) : 0,
                       link.fast_down ? inner((const T*)by_down, link.fast_down, weights) : 0};
    for (int side : {0, 1}) by_rates[side] = -along[side] * link.rates[side];
    EACH (i, wide) by[i] += level.pulled[i];
  }
}

// signal; of each level from the last on: link, x, z, sums so far | hidden signal, sums of up and
// down if wanted, and, if there is a next one, what that is told
template <class T>
void chain_signals(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx weights = s.hidden * s.width, wide = s.tokens * s.width, thin = s.tokens * s.hidden;
  constexpr int GIVEN = Link<T>::PLACES + 4;
  const T* signal = at(0, wide);
  for (int l = 0; l < s.levels; l++) {
    const int place = 1 + GIVEN * l, more = place + Link<T>::PLACES;
    const int made = 1 + GIVEN * s.levels + 4 * l;
    const Link<T> link(at, place, s);
    const T *x = at(more, wide), *z = at(more + 1, thin);
    T *hidden = at(made, thin), *up = at(made + 1, weights), *down = at(made + 2, weights);
    T* told = at(made + 3, wide);
    level.make_a(z, true);
    level.through(hidden, signal, s.hidden, s.width, rows_of(link.down_in_force(level), s.hidden));
    EACH (i, thin) hidden[i] *= level.slope[i];
    level.normalize(x);
    if (up) {
      const T *sum_up = at(more + 2, weights), *sum_down = at(more + 3, weights);
      if (sum_up) std::memcpy(up, sum_up, weights * sizeof(T));
      if (sum_down) std::memcpy(down, sum_down, weights * sizeof(T));
      level.outer(up, hidden, level.normal, s.hidden, s.width, sum_up);
      level.outer(down, signal, level.a, s.width, s.hidden, sum_down);
    }
    if (!told) return;
    level.through(told, hidden, s.width, s.hidden, rows_of(link.up_in_force(level), s.width));
    level.norm_backward(told);
    EACH (i, wide) told[i] += signal[i];
    signal = told;
  }
}

// sums of up and down, up, down, log rates | what a write keeps, and what it takes of both sums
template <class T>
void moves(Level<T>& level, const Given<T>& at) {
  const Sizes& s = level.s;
  const idx weights = s.hidden * s.width;
  T heard = 0;
  for (int side = 0; side < 2; side++) {
    const T* sum = at(side, weights);
#pragma omp simd reduction(+ : heard)
    for (idx i = 0; i < weights; i++) heard += std::fabs(sum[i]);
  }
  const T on = heard > 0;  // not where there are numbers that are none
  *at(5, 1) = 1 - (T)s.lost * on;
  for (int side = 0; side < 2; side++) {
    const T *sum = at(side, weights), *meta = at.shared(2 + side);
    T& shrink = *at(6 + side, 1);
    shrink = on;
    if (s.clip == 0) continue;
    const T rate = std::exp(at.shared(4)[side]) * (T)s.scales[side];
    const T norm = std::sqrt(inner(sum, sum, weights)) * rate;
    const T limit = (T)s.clip * std::sqrt(inner(meta, meta, weights));
    T most = norm > limit ? norm : limit;
    if (norm != norm) most = norm;
    constexpr T tiny = std::numeric_limits<T>::min();
    shrink *= limit / (most < tiny ? tiny : most);
  }
}

template <class T, void (*part)(Level<T>&, const Given<T>&)>
void all_rows(const int64_t* n, void* const* tensors, int64_t threads) {
  const Sizes sizes(n);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Arena<T> arena;
    Level<T> level(arena, sizes);
#pragma omp for schedule(static)
    for (idx row = 0; row < sizes.rows; row++) part(level, Given<T>{tensors, row});
  }
}

}  // namespace
}  // namespace nl

#define ENTRY(name)                                                                           \
  extern "C" void name##_f32(const int64_t* numbers, void* const* tensors, int64_t threads) { \
    nl::all_rows<float, nl::name<float>>(numbers, tensors, threads);                          \
  }                                                                                           \
  extern "C" void name##_f64(const int64_t* numbers, void* const* tensors, int64_t threads) { \
    nl::all_rows<double, nl::name<double>>(numbers, tensors, threads);                        \
  }
ENTRY(branch)
ENTRY(branch_back)
ENTRY(hidden_signal)
ENTRY(pull_back)
ENTRY(gradients)
ENTRY(chain)
ENTRY(chain_back)
ENTRY(chain_signals)
ENTRY(moves)
