// Levels of the continuum memory with SiLU and RMS norm: nl/ops/level.py in machine code.
//
// Names follow the equations there; `by_x` is the gradient of the loss by x. Matrices are tokens by
// features, weights as they are there. Every row has weights of its own, the meta weights minus a
// rate times its fast ones, which are made in the cache and not kept.
#include "elementwise.h"

namespace nl {
namespace {

struct Sizes {
  idx rows, tokens, width, hidden;
};

// One row: what it reads, and room for what is between.
template <class T>
struct Level {
  const Sizes s;
  T *up, *down, *normal, *inverse, *a, *slope, *by_hidden, *by_normal, *room;
  T eps;

  Level(Arena<T>& arena, const Sizes& sizes) : s(sizes) {
    const idx weights = s.hidden * s.width;
    for (T** t : {&up, &down, &room}) *t = arena.take(weights);
    for (T** t : {&normal, &by_normal}) *t = arena.take(s.tokens * s.width);
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
      const T scale = 1 / std::sqrt(inner(row, row, D) / D + eps);
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
  void outer(T* out, const T* left, const T* right, idx m, idx n) {
    product<T>(out, n, m, n, s.tokens, rows_of(left, m).turned(), rows_of(right, n), room, 1,
               false);
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

template <class T, void (*part)(Level<T>&, const Given<T>&)>
void all_rows(const int64_t* n, void* const* tensors, int64_t threads) {
  const Sizes sizes{n[0], n[1], n[2], n[3]};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Arena<T> arena;
    Level<T> level(arena, sizes);
    level.eps = (T)real(n[4]);
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
