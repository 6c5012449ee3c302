// What nl.ops.selfmod_read does, one row (a head of a sequence) after the other, and its backward
// pass. A row stays in the cache from its projections to its answers.
//
// Streams come as (tokens x features), as the projections are: the convolution runs over vectors
// of features. Memories are asked with (features x tokens), rows `wide` numbers apart: whole
// vectors, so that no product has a ragged edge. What is beyond the last token is never used.
#include <algorithm>

#include "elementwise.h"
#include "matrix.h"

namespace nl {

constexpr double UNIT_EPS = 1e-6;
constexpr int STREAMS = 3, BANKS = 6;
enum Bank { MEMORY, MAKERS = 2, GATES = 4 };

// In the order of `_Numbers` in nl/ops/selfmod_native.py.
struct Numbers {
  int64_t batch, heads, size, tokens, taps, makers, memory_units, maker_units, gate_units;
  int64_t skip, gelu;
  int64_t padded_batch, padded_token;
  int64_t logit_row, logit_gate, logit_token;
  int64_t key_row, key_feature, value_row, value_feature, answer_row, answer_feature;

  idx rows() const { return batch * heads; }
  idx before() const { return taps ? taps - 1 : 0; }
  idx width() const { return heads * size; }
  idx units(int bank) const {
    return bank == MEMORY ? memory_units : bank == MAKERS ? maker_units : gate_units;
  }
  idx memories(int bank) const { return bank == MEMORY ? 1 : bank == MAKERS ? makers : 2; }
  idx outputs(int bank) const { return bank == GATES ? 1 : size; }
  // Numbers of a head in the tensor `at` of a bank: first the hidden layer, then the output layer.
  idx count(int at) const {
    const int bank = at & ~1;
    return memories(bank) * units(bank) * (at & 1 ? outputs(bank) : size);
  }
};

// One of the memories of a bank: hidden (units x size), output (outputs x units).
template <class T>
struct Memory {
  T *hidden, *output;
  idx units, outputs;
};

template <class T>
Memory<T> memory(const Numbers& s, T* const* six, int bank, idx m) {
  const idx units = s.units(bank), outputs = s.outputs(bank);
  return {six[bank] + m * units * s.size, six[bank + 1] + m * outputs * units, units, outputs};
}

template <class T>
struct Given {
  const T *padded, *taps, *logits;
  const T *initial[BANKS], *added[BANKS];
};

template <class T>
struct Made {
  T *keys, *values, *rate, *log_decay, *answers, *key_factor, *value_factor;
};

template <class T>
struct Gradients {
  const T *keys, *values, *rate, *log_decay, *answers;
  T *padded, *taps, *logits;
  T *added[BANKS], *initial[BANKS];
  T* taps_of_rows;  // (rows, taps, streams, size)
};

// Works on one row after the other, in memory of its own.
template <class T>
class Row {
 public:
  Row(const Numbers& sizes, const Given<T>& inputs) : s(sizes), in(inputs) {
    wide = (s.tokens + LANES<T> - 1) / LANES<T> * LANES<T>;
    most = std::max({s.memory_units, s.maker_units, s.gate_units});
    for (int i = 0; i < BANKS; i++) weights[i] = arena.take(s.count(i));
    z = arena.take(most * wide);
    x = blank(s.size * wide);
    query = blank(s.size * wide);
    factor = arena.take(wide);
    logits = arena.take(2 * wide);
    for (int i = 0; i < STREAMS; i++) stream[i] = arena.take(s.tokens * s.size);
  }

  void forward(idx n, const Made<T>& out) {
    enter(n);
    const idx tokens = s.tokens, area = s.size * tokens;
    T* made[] = {out.keys + n * area, out.values + n * area};
    T* factors[] = {out.key_factor + n * tokens, out.value_factor + n * tokens};
    for (int kind = 0; kind < STREAMS; kind++) {
      mix(kind, nullptr);
      T* to = kind < 2 ? x : query;
      turn(to, wide, stream[kind], s.size, tokens, s.size);
      if (kind < s.makers) answer(to, to, memory(s, weights, MAKERS, kind), true);
      unit(to);
      if (kind < 2) {
        copy(made[kind], tokens, to, wide, s.size, tokens);
        copy(factors[kind], tokens, factor, wide, 1, tokens);
      }
    }
    open(n, out.rate + n * tokens, out.log_decay + n * tokens);
    answer(s.skip ? query : x, query, memory(s, weights, MEMORY, 0), s.skip);
    copy(out.answers + n * area, tokens, s.skip ? query : x, wide, s.size, tokens);
  }

  // What only the backward pass needs.
  void expect_gradients() {
    slope = arena.take(most * wide);
    by_z = arena.take(most * wide);
    room = arena.take(s.tokens * most);
    grad = blank(s.size * wide);
    by_stream = arena.take(s.tokens * s.size);
    query_tokens = arena.take(s.tokens * s.size);
    given = arena.take((s.tokens + s.before()) * s.size);
    for (int i = 0; i < STREAMS && s.taps; i++) stream_slope[i] = arena.take(s.tokens * s.size);
  }

  void backward(idx n, const Made<T>& out, const Gradients<T>& by) {
    enter(n);
    for (int i = 0; i < BANKS; i++) by_weights[i] = by.added[i] + n * s.count(i);
    for (int kind = 0; kind < STREAMS; kind++) mix(kind, stream_slope[kind]);
    const idx area = s.size * s.tokens;
    memory_backward(n, by);
    maker_backward(2, n, by);
    unit_backward(by.keys + n * s.key_row, s.key_feature, out.keys + n * area, s.tokens,
                  out.key_factor + n * s.tokens);
    maker_backward(0, n, by);
    unit_backward(by.values + n * s.value_row, s.value_feature, out.values + n * area, s.tokens,
                  out.value_factor + n * s.tokens);
    maker_backward(1, n, by);
    gates_backward(n, out, by);
  }

 private:
  T* blank(idx count) {
    T* piece = arena.take(count);
    std::memset(piece, 0, count * sizeof(T));
    return piece;
  }

  // Weights in force and where the row has its projections.
  void enter(idx n) {
    head = n % s.heads;
    for (int i = 0; i < BANKS; i++) {
      const idx count = s.count(i);
      const T *start = in.initial[i] + head * count, *more = in.added[i] + n * count;
      T* __restrict to = weights[i];
      for (idx j = 0; j < count; j++) to[j] = start[j] + more[j];
    }
    padded = in.padded + n / s.heads * s.padded_batch + head * s.size;
  }

  const T* tap(idx i, int kind) const {
    return in.taps + (i * STREAMS + kind) * s.width() + head * s.size;
  }

  // The stream of a kind (tokens x features) after convolution and SiLU, and SiLU's slope if asked.
  void mix(int kind, T* slopes) {
    const T* from = padded + kind * s.width();
    T* to = stream[kind];
    if (!s.taps) return copy(to, s.size, from, s.padded_token, s.tokens, s.size);
    for (idx t = 0; t < s.tokens; t++)
      weighted(to + t * s.size, s.size, from + t * s.padded_token, s.padded_token, tap(0, kind),
               STREAMS * s.width(), s.taps);
    if (slopes) activate(to, slopes, s.tokens * s.size, false);
    else activate(to, s.tokens * s.size, false);
  }

  // y = W1 phi(W2 from), and y += that.
  void answer(T* y, const T* from, const Memory<T>& m, bool add) {
    product(z, wide, m.units, wide, s.size, rows_of<T>(m.hidden, s.size), rows_of(from, wide), room,
            T(1), false);
    activate(z, m.units * wide, s.gelu);
    product(y, wide, m.outputs, wide, m.units, rows_of<T>(m.output, m.units), rows_of<T>(z, wide),
            room, T(1), add);
  }

  void unit(T* __restrict y) {
    T* __restrict f = factor;
    std::memset(f, 0, wide * sizeof(T));
    for (idx k = 0; k < s.size; k++) add_times(f, y + k * wide, y + k * wide, wide);
    for (idx t = 0; t < wide; t++) f[t] = T(1) / std::sqrt(f[t] + T(UNIT_EPS));
    for (idx k = 0; k < s.size; k++) times(y + k * wide, f, wide);
  }

  const T* gate_stream() const {
    return padded + STREAMS * s.width() + s.before() * s.padded_token;
  }

  // Rate and log decay.
  void open(idx n, T* rate, T* log_decay) {
    turn(x, wide, gate_stream(), s.padded_token, s.tokens, s.size);
    for (int m = 0; m < 2; m++) answer(logits + m * wide, x, memory(s, weights, GATES, m), false);
    const T* more = in.logits + n * s.logit_row;
    for (idx t = 0; t < s.tokens; t++) {
      rate[t] = sigmoid(logits[t] + more[t * s.logit_token]);
      log_decay[t] = -softplus(logits[wide + t] + more[s.logit_gate + t * s.logit_token]);
    }
  }

  // Gradients of a memory's weights, and of what it was asked: `tokens` is `from` turned round.
  void answer_backward(const T* by, const T* from, const T* tokens, const Memory<T>& m,
                       const Memory<T>& to, bool add) {
    const idx units = m.units;
    product(z, wide, units, wide, s.size, rows_of<T>(m.hidden, s.size), rows_of(from, wide), room,
            T(1), false);
    activate(z, slope, units * wide, s.gelu);
    product(by_z, wide, units, wide, m.outputs, rows_of<T>(m.output, units).turned(),
            rows_of(by, wide), room, T(1), false);
    times(by_z, slope, units * wide);
    product(to.hidden, s.size, units, s.size, s.tokens, rows_of<T>(by_z, wide),
            rows_of(tokens, s.size), room, T(1), false);
    product(to.output, units, m.outputs, units, s.tokens, rows_of(by, wide),
            rows_of<T>(z, wide).turned(), room, T(1), false);
    product(by_stream, s.size, s.tokens, s.size, units, rows_of<T>(by_z, wide).turned(),
            rows_of<T>(m.hidden, s.size), room, T(1), add);
  }

  // From the gradient of the answers to `grad`, that of the query before it was made a unit vector.
  void memory_backward(idx n, const Gradients<T>& by) {
    turn(query, wide, stream[2], s.size, s.tokens, s.size);
    if (s.makers > 2) answer(query, query, memory(s, weights, MAKERS, 2), true);
    unit(query);
    turn(query_tokens, s.size, query, wide, s.size, s.tokens);
    copy(grad, wide, by.answers + n * s.answer_row, s.answer_feature, s.size, s.tokens);
    if (s.skip) turn(by_stream, s.size, grad, wide, s.size, s.tokens);
    answer_backward(grad, query, query_tokens, memory(s, weights, MEMORY, 0),
                    memory(s, by_weights, MEMORY, 0), s.skip);
    turn(x, wide, by_stream, s.size, s.tokens, s.size);
    unit_backward(x, wide, query, wide, factor);
  }

  // grad = the part of `by` across the unit vectors, times the factor.
  void unit_backward(const T* by, idx by_row, const T* units, idx units_row, const T* factors) {
    T* __restrict along = logits;
    std::memset(along, 0, s.tokens * sizeof(T));
    for (idx k = 0; k < s.size; k++)
      add_times(along, by + k * by_row, units + k * units_row, s.tokens);
    for (idx k = 0; k < s.size; k++) {
      const T *one = by + k * by_row, *two = units + k * units_row;
      T* __restrict to = grad + k * wide;
      for (idx t = 0; t < s.tokens; t++) to[t] = (one[t] - two[t] * along[t]) * factors[t];
    }
  }

  // From `grad`, that of what a maker made, to the projections.
  void maker_backward(int kind, idx n, const Gradients<T>& by) {
    turn(by_stream, s.size, grad, wide, s.size, s.tokens);
    if (kind < s.makers) {
      turn(x, wide, stream[kind], s.size, s.tokens, s.size);
      answer_backward(grad, x, stream[kind], memory(s, weights, MAKERS, kind),
                      memory(s, by_weights, MAKERS, kind), true);
    }
    T* to = by_padded(kind, n, by);
    const idx apart = 4 * s.width();
    if (!s.taps) return copy(to, apart, by_stream, s.size, s.tokens, s.size);
    times(by_stream, stream_slope[kind], s.tokens * s.size);
    convolve_backward(to, kind, by.taps_of_rows + (n * s.taps * STREAMS + kind) * s.size);
  }

  // From `by_stream` to the projections and to the taps of this row.
  void convolve_backward(T* to, int kind, T* taps) {
    const idx apart = STREAMS * s.width(), last = s.taps - 1;
    for (idx i = 0; i < s.tokens + last; i++) {
      const idx from = std::max<idx>(0, i - s.tokens + 1), end = std::min<idx>(i, last) + 1;
      weighted(to + i * 4 * s.width(), s.size, by_stream + (i - from) * s.size, -s.size,
               tap(from, kind), apart, end - from);
    }
    // Rows far apart fall on each other in the cache: what is read again is copied.
    copy(given, s.size, padded + kind * s.width(), s.padded_token, s.tokens + last, s.size);
    for (idx i = 0; i < s.taps; i++)
      weighted(taps + i * STREAMS * s.size, s.size, by_stream, s.size, given + i * s.size, s.size,
               s.tokens);
  }

  T* by_padded(int kind, idx n, const Gradients<T>& by) const {
    const idx length = s.tokens + s.before();
    return by.padded + (n / s.heads * length * 4 + kind) * s.width() + head * s.size;
  }

  void gates_backward(idx n, const Made<T>& out, const Gradients<T>& by) {
    const T *rate = out.rate + n * s.tokens, *log_decay = out.log_decay + n * s.tokens;
    for (idx t = 0; t < s.tokens; t++) {
      const idx i = n * s.tokens + t;
      logits[t] = by.rate[i] * rate[t] * (T(1) - rate[t]);
      logits[wide + t] = by.log_decay[i] * std::expm1(log_decay[t]);
    }
    copy(by.logits + n * 2 * s.tokens, s.tokens, logits, wide, 2, s.tokens);
    T* tokens = stream[2];
    copy(tokens, s.size, gate_stream(), s.padded_token, s.tokens, s.size);
    turn(x, wide, tokens, s.size, s.tokens, s.size);
    for (int m = 0; m < 2; m++)
      answer_backward(logits + m * wide, x, tokens, memory(s, weights, GATES, m),
                      memory(s, by_weights, GATES, m), m > 0);
    T* to = by_padded(STREAMS, n, by);
    const idx apart = 4 * s.width();
    for (idx i = 0; i < s.before(); i++) std::memset(to + i * apart, 0, s.size * sizeof(T));
    copy(to + s.before() * apart, apart, by_stream, s.size, s.tokens, s.size);
  }

  const Numbers& s;
  const Given<T>& in;
  Arena<T> arena;
  idx wide, most, head = 0;
  const T* padded = nullptr;
  T *weights[BANKS], *by_weights[BANKS], *stream[STREAMS], *stream_slope[STREAMS] = {};
  T *z, *x, *query, *factor, *logits;
  T *slope, *by_z, *room = nullptr, *grad, *by_stream, *query_tokens, *given;
};

// Of the initial weights and taps: sums over the batch, in its order whoever computes them.
template <class T>
void sum_over_batch(const Numbers& s, const Gradients<T>& by, idx head) {
  for (int i = 0; i < BANKS; i++) {
    const idx count = s.count(i);
    T* __restrict to = by.initial[i] + head * count;
    std::memcpy(to, by.added[i] + head * count, count * sizeof(T));
    for (idx b = 1; b < s.batch; b++) {
      const T* from = by.added[i] + (b * s.heads + head) * count;
      for (idx j = 0; j < count; j++) to[j] += from[j];
    }
  }
  const idx pieces = s.taps * STREAMS;
  for (idx i = 0; i < pieces; i++) {
    T* to = by.taps + i * s.width() + head * s.size;
    std::memset(to, 0, s.size * sizeof(T));
    for (idx b = 0; b < s.batch; b++) {
      const T* from = by.taps_of_rows + ((b * s.heads + head) * pieces + i) * s.size;
      for (idx k = 0; k < s.size; k++) to[k] += from[k];
    }
  }
}

// Hands out the tensors of a call in their order.
template <class T>
struct Tensors {
  void* const* next;
  T* one() { return static_cast<T*>(*next++); }
  Given<T> given() {
    Given<T> in{one(), one(), one(), {}, {}};
    for (auto& t : in.initial) t = one();
    for (auto& t : in.added) t = one();
    return in;
  }
  Made<T> made() { return {one(), one(), one(), one(), one(), one(), one()}; }
  Gradients<T> gradients() {
    Gradients<T> by{one(), one(), one(), one(), one(), one(), one(), one(), {}, {}, nullptr};
    for (auto& t : by.added) t = one();
    for (auto& t : by.initial) t = one();
    by.taps_of_rows = one();
    return by;
  }
};

template <class T>
void read_forward(const Numbers& s, Tensors<T> tensors, int64_t threads) {
  const Given<T> in = tensors.given();
  const Made<T> out = tensors.made();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Row<T> row(s, in);
#pragma omp for
    for (idx n = 0; n < s.rows(); n++) row.forward(n, out);
  }
}

template <class T>
void read_backward(const Numbers& s, Tensors<T> tensors, int64_t threads) {
  const Given<T> in = tensors.given();
  const Made<T> out = tensors.made();
  const Gradients<T> by = tensors.gradients();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Row<T> row(s, in);
    row.expect_gradients();
#pragma omp for
    for (idx n = 0; n < s.rows(); n++) row.backward(n, out, by);
#pragma omp for
    for (idx head = 0; head < s.heads; head++) sum_over_batch(s, by, head);
  }
}

}  // namespace nl

#define NL_EXPORT(NAME, T, SUFFIX)                                                                 \
  extern "C" void NAME##_##SUFFIX(const int64_t* numbers, void* const* tensors, int64_t threads) { \
    nl::NAME<T>(*reinterpret_cast<const nl::Numbers*>(numbers), {tensors}, threads);               \
  }
NL_EXPORT(read_forward, float, f32)
NL_EXPORT(read_forward, double, f64)
NL_EXPORT(read_backward, float, f32)
NL_EXPORT(read_backward, double, f64)
