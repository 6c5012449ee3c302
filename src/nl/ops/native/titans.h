// Titans memories over many chunks: what `_Scan` of nl/ops/titans_scan.py does, row by row.
//
// A row never looks at another one, so threads share rows out. Within a row the chunks follow each
// other and the memory E (M, out, in per layer) stays in the cache; it is written in place, in the
// tensor that is handed back. The notation is that of the torch form: C tokens, queries above keys
// in matrices of 2 C rows, M parts of a state (D, and S with momentum). The way back is in
// titans.cpp.
#pragma once

#include "titans_update.h"

namespace nl {

constexpr double CROWD_EPS = 1e-2;

struct Layer {
  idx group, place, peers, out, in;
  bool skip;
  idx size() const { return out * in; }
};

// Sizes and options, in the order in which nl/ops/titans_native.py lists them.
struct Plan {
  idx rows, chunks, C, M, segment, groups, widest = 0;
  bool crowded;
  std::vector<Layer> layers;
  idx strides[6];  // from row to row and token to token, of queries, keys and values

  explicit Plan(const int64_t* n)
      : rows(n[0]),
        chunks(n[1]),
        C(n[2]),
        M(n[3]),
        segment(n[4]),
        groups(n[5]),
        crowded(n[6]) {
    const idx depth = n[7];
    for (idx i = 0; i < 6; i++) strides[i] = n[8 + i];
    for (idx i = 0; i < depth; i++) {
      const int64_t* l = n + 14 + 5 * i;
      layers.push_back({l[0], l[1], l[2], l[3], l[4], i < depth - 1 && l[3] == l[4]});
      widest = std::max({widest, (idx)l[3], (idx)l[4]});
    }
  }
  idx depth() const { return (idx)layers.size(); }
  idx width() const { return layers[0].in; }
};

// A tensor per group, (n, N G, size) or (N G, size).
template <class T>
struct Grouped {
  std::vector<T*> at;
  idx rows;
  T* of(const Layer& l, idx row, idx size, idx chunk = 0) const {
    T* all = at[l.group];
    return all ? all + ((chunk * rows + row) * l.peers + l.place) * size : nullptr;
  }
};

// Takes tensors off the list one after another.
template <class T>
struct Tensors {
  void* const* next;
  const Plan& plan;
  T* one() { return static_cast<T*>(*next++); }
  Grouped<T> grouped() {
    Grouped<T> made{{}, plan.rows};
    for (idx g = 0; g < plan.groups; g++) made.at.push_back(one());
    return made;
  }
};

// What a scan is given, or made: its adjoints.
template <class T>
struct Parts {
  T *queries, *keys, *values;
  Grouped<T> mixes, lifts, rates, base, first;
  explicit Parts(Tensors<T>& from)
      : queries(from.one()),
        keys(from.one()),
        values(from.one()),
        mixes(from.grouped()),
        lifts(from.grouped()),
        rates(from.grouped()),
        base(from.grouped()),
        first(from.grouped()) {}
};

// What one layer leaves behind of one chunk; see `Tape` of the torch form. x is its input, and
// `above` the room for its output, the next layer's input.
template <class T>
struct Trace {
  const T* x;
  T *above, *slope, *curl, *delta, *coef, *gram, *shared, *state;
};

template <class T>
T dot(const T* a, const T* b, idx n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (idx i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// The passes over the chunks of one row at a time, and the memory they need.
template <class T>
class Walk {
 public:
  Walk(const Plan& plan, const Parts<T>& given, idx slots) : p(plan), g(given) {
    const idx C = p.C, wide = p.widest;
    for (const Layer& l : p.layers) {
      weight.push_back(nullptr);
      room.push_back(g.base.at[0] ? arena.take(l.size()) : nullptr);
    }
    turned = arena.take(wide * wide);
    block = arena.take(p.M * ROWS_AT_ONCE * wide);
    step = arena.take(C * p.M * wide);
    small = arena.take(C * std::max(wide, C));
    for (T** one : {&back, &other}) *one = arena.take(2 * C * wide);
    tape.assign(slots, std::vector<Trace<T>>());
    for (idx k = 0; k < slots; k++)
      for (const Layer& l : p.layers) tape[k].push_back(trace(l));
    for (idx k = 0; k < slots; k++) pairs.push_back(arena.take(2 * C * p.width()));
  }

  // Forward over all chunks, E in place in `state`; `kept`: E where segments begin but the first.
  void forward(idx row, T* answers, const Grouped<T>& state, const Grouped<T>& kept) {
    std::vector<Trace<T>>& traces = tape[0];
    for (idx i = 0; i < p.depth(); i++) {
      const Layer& l = p.layers[i];
      traces[i].state = state.of(l, row, p.M * l.size());
      copy(traces[i].state, g.first.of(l, row, p.M * l.size()), p.M * l.size());
    }
    weights(row, traces);
    for (idx at = 0; at < p.chunks; at++) {
      if (at && at % p.segment == 0)
        for (idx i = 0; i < p.depth(); i++) {
          const idx size = p.M * p.layers[i].size();
          T* to = kept.of(p.layers[i], row, size, at / p.segment - 1);
          if (to) copy(to, traces[i].state, size);
        }
      read(row, at, 0, answers + (row * p.chunks + at) * p.C * p.width());
      for (idx i = 0; i < p.depth(); i++) write(row, at, i, traces[i], traces[i].state);
    }
  }

  // A segment of chunks once more, with all that the way back needs.
  void again(idx row, idx start, idx size, const Grouped<T>& kept) {
    const idx which = start / p.segment;
    for (idx i = 0; i < p.depth(); i++) {
      const idx count = p.M * p.layers[i].size();
      const T* from =
          which ? kept.of(p.layers[i], row, count, which - 1) : g.first.of(p.layers[i], row, count);
      copy(own_state(0, i), from, count);
      tape[0][i].state = own_state(0, i);
    }
    weights(row, tape[0]);
    for (idx k = 0; k < size; k++) {
      for (idx i = 0; i < p.depth(); i++) tape[k][i].state = own_state(k, i);
      read(row, start + k, k, nullptr);
      for (idx i = 0; i < p.depth(); i++)
        write(row, start + k, i, tape[k][i], k + 1 < size ? own_state(k + 1, i) : nullptr);
    }
  }

 protected:
  static void copy(T* to, const T* from, idx count) { std::memcpy(to, from, count * sizeof(T)); }

  Trace<T> trace(const Layer& l) {
    const idx C = p.C;
    return {nullptr,
            arena.take(2 * C * l.out),
            arena.take(2 * C * l.out),
            arena.take(C * l.out),
            arena.take(C * l.out),
            arena.take(C * p.M),
            arena.take(p.crowded ? C * C : 1),
            arena.take(C),
            nullptr};
  }

  // E at the start of the chunk in slot k, in memory of this walk; made when first asked for.
  T* own_state(idx k, idx i) {
    if (states.empty())
      for (idx slot = 0; slot < (idx)tape.size(); slot++)
        for (const Layer& l : p.layers) states.push_back(arena.take(p.M * l.size()));
    return states[k * p.depth() + i];
  }

  // The K numbers of one token: `which` of queries, keys and values.
  const T* token(const T* all, idx which, idx row, idx at) const {
    return all + row * p.strides[2 * which] + at * p.strides[2 * which + 1];
  }

  // The weights in force, (out, in).
  void weights(idx row, const std::vector<Trace<T>>& traces) {
    for (idx i = 0; i < p.depth(); i++) {
      const idx size = p.layers[i].size();
      const T *held = traces[i].state, *start = g.base.of(p.layers[i], row, size);
      weight[i] = start ? room[i] : held;
      if (!start) continue;
      T* to = room[i];
#pragma omp simd
      for (idx q = 0; q < size; q++) to[q] = start[q] + held[q];
    }
  }

  // Answers (C, K), unless null, and the inputs, deltas and slopes of all layers.
  void read(idx row, idx at, idx slot, T* answers) {
    const idx C = p.C, last = p.depth() - 1, K = p.width();
    std::vector<Trace<T>>& traces = tape[slot];
    traces[0].x = pairs[slot];
    for (idx c = 0; c < C; c++) {
      copy(pairs[slot] + c * K, token(g.queries, 0, row, at * C + c), K);
      copy(pairs[slot] + (C + c) * K, token(g.keys, 1, row, at * C + c), K);
    }
    for (idx i = 0; i <= last; i++) {
      const Layer& l = p.layers[i];
      Trace<T>& t = traces[i];
      turn(turned, l.out, weight[i], l.in, l.out, l.in);
      const View<T> right = rows_of<T>(turned, l.out);
      if (i < last) {
        product(t.above, l.out, 2 * C, l.out, l.in, rows_of(t.x, l.in), right, (T*)0, T(1), false);
        activate(l, t);
        traces[i + 1].x = t.above;
        continue;
      }
      if (answers)
        product(answers, l.out, C, l.out, l.in, rows_of(t.x, l.in), right, (T*)0, T(1), false);
      const View<T> keys = rows_of(t.x + C * l.in, l.in);
      product(t.delta, l.out, C, l.out, l.in, keys, right, (T*)0, T(1), false);
      for (idx c = 0; c < C; c++) {
        const T* value = token(g.values, 2, row, at * C + c);
        T* delta = t.delta + c * K;
#pragma omp simd
        for (idx q = 0; q < K; q++) delta[q] -= value[q];
      }
    }
    errors(traces);
  }

  // silu, its slope, and its bend at the keys.
  void activate(const Layer& l, Trace<T>& t) {
    const idx half = p.C * l.out;
    for (idx part = 0; part < 2; part++) {
      T *y = t.above + part * half, *slope = t.slope + part * half, *curl = t.curl;
      const T* x = t.x + part * half;
#pragma omp simd
      for (idx q = 0; q < half; q++) {
        const T z = y[q], gate = sigmoid(z), rest = 1 - gate, value = z * gate;
        const T steep = gate + value * rest;
        slope[q] = steep;
        curl[q] = (value - 2 * steep) * rest;  // of the queries, then of the keys: these stay
        y[q] = value;
      }
      if (l.skip) add(y, x, half);
    }
  }

  // delta of all layers but the last, from that of the last; curls times what slopes multiply.
  void errors(std::vector<Trace<T>>& traces) {
    const idx C = p.C;
    T *to = back, *above = other;
    for (idx i = p.depth() - 1; i > 0; i--) {
      const Layer& l = p.layers[i];
      product(to, l.in, C, l.in, l.out, rows_of<T>(traces[i].delta, l.out),
              rows_of(weight[i], l.in), (T*)0, T(1), false);
      const T *slope = traces[i - 1].slope + C * l.in, *more = l.skip ? above : nullptr;
      T *delta = traces[i - 1].delta, *curl = traces[i - 1].curl;
      if (more) add(to, more, C * l.in);
#pragma omp simd
      for (idx q = 0; q < C * l.in; q++) {
        delta[q] = to[q] * slope[q];
        curl[q] *= to[q];
      }
      std::swap(to, above);
    }
  }

  static void add(T* to, const T* more, idx count) {
#pragma omp simd
    for (idx q = 0; q < count; q++) to[q] += more[q];
  }

  // The step sizes, and E at the chunk's end unless that is null.
  void write(idx row, idx at, idx i, Trace<T>& t, T* end) {
    const Layer& l = p.layers[i];
    const idx C = p.C, M = p.M;
    const T *x = t.x + C * l.in, *lift = g.lifts.of(l, row, C * M, at);
    if (p.crowded) crowd(x, g.rates.of(l, row, C, at), l.in, t);
    for (idx c = 0; c < C; c++)
      for (idx m = 0; m < M; m++)
        t.coef[c * M + m] = p.crowded ? lift[c * M + m] / divisor(t, c) : lift[c * M + m];
    if (!end) return;
    spread(l, t);
    if (M == 1) moved<1>(row, at, i, t, end);
    else moved<2>(row, at, i, t, end);
  }

  // E at the chunk's end, and the weights in force from there on.
  template <int M>
  void moved(idx row, idx at, idx i, const Trace<T>& t, T* end) {
    const Layer& l = p.layers[i];
    const Outer<T> steps{step, M * l.out, t.x + p.C * l.in, l.in, p.C};
    const T *mix = g.mixes.of(l, row, M * M, at), *start = g.base.of(l, row, l.size());
    Forward<T, M> update{end, t.state, l.in, l.size(), mix, steps, l.out, room[i], start};
    cover_all<T, M == 1 ? 4 : 2>(l.out, l.in, update, p.C, block);
    weight[i] = start ? room[i] : end;
  }

  T divisor(const Trace<T>& t, idx c) const {
    const T own = t.gram[c * p.C + c], shared = t.shared[c];
    return (shared > own || shared != shared ? shared : own) + T(CROWD_EPS);
  }

  // step (C, M, out) = coef delta.
  void spread(const Layer& l, const Trace<T>& t) {
    for (idx c = 0; c < p.C; c++)
      for (idx m = 0; m < p.M; m++) {
        const T much = t.coef[c * p.M + m], *delta = t.delta + c * l.out;
        T* to = step + (c * p.M + m) * l.out;
#pragma omp simd
        for (idx o = 0; o < l.out; o++) to[o] = much * delta[o];
      }
  }

  // Products of all inputs (C, in) with each other, and what each shares with the others.
  void crowd(const T* x, const T* rate, idx in, Trace<T>& t) {
    const idx C = p.C, full = C - C % LANES<T>;
    const View<T> inputs = rows_of(x, in);
    if (full) product(t.gram, C, C, full, in, inputs, inputs.turned(), small, T(1), false);
    for (idx j = full; j < C; j++)
      for (idx i = 0; i <= j; i++)
        t.gram[i * C + j] = t.gram[j * C + i] = dot(x + i * in, x + j * in, in);
    for (idx i = 0; i < C; i++) {
      T sum = 0;
      const T* line = t.gram + i * C;
#pragma omp simd reduction(+ : sum)
      for (idx j = 0; j < C; j++) sum += std::abs(line[j]) * rate[j];
      t.shared[i] = sum;
    }
  }

  const Plan& p;
  const Parts<T>& g;
  Arena<T> arena;
  std::vector<const T*> weight;
  std::vector<T*> room, states, pairs;
  std::vector<std::vector<Trace<T>>> tape;
  T *turned, *block, *step, *small, *back, *other;
};

}  // namespace nl
