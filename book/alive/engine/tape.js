// Tensors of one step, and the operations of a transformer on them, each with its gradient.
//
// A tensor is a matrix (rows, cols) in the engine's memory; a batch's tokens are its rows, one text after the
// other, without padding. Every operation notes what its gradient needs on the tape, and `backward` goes through
// the notes from last to first. A tensor has a gradient only where something that learns stands before it.

class Tensor {
  constructor(memory, rows, cols) {
    Object.assign(this, { memory, rows, cols, at: memory.take(rows * cols), gradAt: 0 });
  }

  get size() { return this.rows * this.cols; }
  get data() { return this.memory.floats.subarray(this.at, this.at + this.size); }
  get grad() { return this.memory.floats.subarray(this.gradAt, this.gradAt + this.size); }
  get learns() { return this.gradAt > 0; }

  learn(wanted = true) {
    if (wanted && !this.gradAt) this.gradAt = this.memory.take(this.size);
    return this;
  }
}

// A frozen weight, (outputs, inputs), kept with its transpose: the kernel wants one forward, one backward.
export class Frozen extends Tensor {
  constructor(memory, rows, cols, values) {
    super(memory, rows, cols);
    this.turned = memory.take(rows * cols);
    this.set(values);
  }

  set(values) {
    this.data.set(values);
    turn(this.memory.floats, this.at, this.rows, this.cols, this.turned);
  }
}

export class Tape {
  constructor(memory, kernel, records = true) {
    Object.assign(this, { memory, records, notes: [], gemm: kernel.gemm });
  }

  note(gradient) { if (this.records) this.notes.push(gradient); }

  make(rows, cols, learns = false) {
    return new Tensor(this.memory, rows, cols).learn(learns && this.records);
  }

  backward() {
    while (this.notes.length) this.notes.pop()();
  }

  // A trained parameter, {rows, cols, values}, as a tensor of this step.
  parameter({ rows, cols, values }) {
    const made = this.make(rows, cols, true);
    made.data.set(values);
    return made;
  }

  // y += x Wᵀ, for x (tokens, inputs), W (outputs, inputs) and y (tokens, outputs), which is made if need be.
  linear(x, W, y = this.make(x.rows, W.rows)) {
    let turned = W.turned;
    if (!turned) {
      turned = this.memory.take(W.size);
      turn(this.memory.floats, W.at, W.rows, W.cols, turned);
    }
    y.learn(this.records && (x.learns || W.learns));
    this.gemm(x.at, x.cols, 1, turned, W.rows, y.at, y.cols, x.rows, W.rows, W.cols);
    this.note(() => {
      if (x.learns) this.gemm(y.gradAt, y.cols, 1, W.at, W.cols, x.gradAt, x.cols, x.rows, W.cols, W.rows);
      if (W.learns) this.gemm(y.gradAt, 1, y.cols, x.at, x.cols, W.gradAt, W.cols, W.rows, W.cols, x.rows);
    });
    return y;
  }

  // x + b in every row, for b (1, cols); in place.
  biased(x, b) {
    const X = x.data, B = b.data, { rows, cols } = x;
    for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) X[i * cols + j] += B[j];
    x.learn(this.records && b.learns);
    if (b.learns) this.note(() => {
      const dX = x.grad, dB = b.grad;
      for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) dB[j] += dX[i * cols + j];
    });
    return x;
  }

  // A new tensor of x's shape, y = f(x, ...), with dx += g(dy, ...); both are called with an index and arrays.
  each(inputs, value, gradient) {
    const y = this.make(inputs[0].rows, inputs[0].cols, inputs.some((x) => x.learns));
    value(y.data, ...inputs.map((x) => x.data));
    if (y.learns) this.note(() => gradient(y.grad, y.data, ...inputs));
    return y;
  }

  add(a, b) {
    return this.each([a, b], (Y, A, B) => { for (let i = 0; i < Y.length; i++) Y[i] = A[i] + B[i]; },
      (dY) => { for (const x of [a, b]) if (x.learns) plus(x.grad, dY); });
  }

  // Each row times its factor.
  times(x, factors) {
    const scale = (to, from, adds) => {
      for (let i = 0, at = 0; i < x.rows; i++)
        for (let j = 0; j < x.cols; j++, at++) to[at] = (adds ? to[at] : 0) + factors[i] * from[at];
    };
    return this.each([x], (Y, X) => scale(Y, X), (dY) => { if (x.learns) scale(x.grad, dY, true); });
  }

  relu(x) {
    return this.each([x], (Y, X) => { for (let i = 0; i < Y.length; i++) Y[i] = Math.max(X[i], 0); }, (dY, Y) => {
      const dX = x.grad;
      for (let i = 0; i < dY.length; i++) if (Y[i] > 0) dX[i] += dY[i];
    });
  }

  // silu(gate) · up: Llama's feed-forward network between its maps (Shazeer 2020, arXiv:2002.05202).
  swiglu(gate, up) {
    const sigmoid = (x) => 1 / (1 + Math.exp(-x));
    return this.each([gate, up], (Y, G, U) => { for (let i = 0; i < Y.length; i++) Y[i] = G[i] * sigmoid(G[i]) * U[i]; },
      (dY) => {
        const G = gate.data, U = up.data, dG = gate.learns && gate.grad, dU = up.learns && up.grad;
        for (let i = 0; i < dY.length; i++) {
          const s = sigmoid(G[i]);
          if (dG) dG[i] += dY[i] * U[i] * s * (1 + G[i] * (1 - s));
          if (dU) dU[i] += dY[i] * G[i] * s;
        }
      });
  }

  // x / rms(x) · w in every row (Zhang & Sennrich 2019, arXiv:1910.07467).
  norm(x, w, epsilon) {
    const { rows, cols } = x, W = w.data, inverse = new Float64Array(rows);
    const y = this.make(rows, cols, x.learns), X = x.data, Y = y.data;
    for (let i = 0; i < rows; i++) {
      let sum = 0;
      for (let j = i * cols; j < (i + 1) * cols; j++) sum += X[j] * X[j];
      inverse[i] = 1 / Math.sqrt(sum / cols + epsilon);
      for (let j = 0; j < cols; j++) Y[i * cols + j] = X[i * cols + j] * inverse[i] * W[j];
    }
    if (y.learns) this.note(() => {
      const X = x.data, dX = x.grad, dY = y.grad, W = w.data;
      for (let i = 0; i < rows; i++) {
        const at = i * cols;
        let along = 0;
        for (let j = 0; j < cols; j++) along += dY[at + j] * W[j] * X[at + j];
        along *= inverse[i] ** 3 / cols;
        for (let j = 0; j < cols; j++) dX[at + j] += dY[at + j] * W[j] * inverse[i] - along * X[at + j];
      }
    });
    return y;
  }

  // Rotary positions (Su et al. 2021, arXiv:2104.09864): in each head, numbers i and i + size/2 turn by an angle.
  rotate(x, positions, { cos, sin, half }) {
    const turnBy = (to, from, sign) => {
      for (let i = 0; i < x.rows; i++) {
        const angles = positions[i] * half;
        for (let head = i * x.cols; head < (i + 1) * x.cols; head += 2 * half)
          for (let j = 0; j < half; j++) {
            const c = cos[angles + j], s = sign * sin[angles + j], a = from[head + j], b = from[head + half + j];
            to[head + j] += a * c - b * s;
            to[head + half + j] += b * c + a * s;
          }
      }
    };
    return this.each([x], (Y, X) => turnBy(Y, X, 1), (dY) => turnBy(x.grad, dY, -1));
  }

  // Causal attention of each text to itself, and to a prefix of keys and values if there is one.
  // q, k, v: (tokens, heads · size); prefix: {tensor (n, ...), keys, values}, the columns where the layer's begin.
  attention(q, k, v, texts, heads, prefix) {
    const width = q.cols, size = width / heads, scale = 1 / Math.sqrt(size), n = prefix ? prefix.tensor.rows : 0;
    const y = this.make(q.rows, width, q.learns || k.learns || v.learns || Boolean(prefix?.tensor.learns));
    const weights = this.memory.take(heads * texts.reduce((sum, { length }) => sum + length * (n + length), 0));
    const X = this.memory.floats, P = prefix?.tensor;
    // Goes over every pair of a query and what it sees, by their places in the memory.
    const visit = (start, length, head, query) => {
      const keyAt = (j) => j < n ? P.at + j * P.cols + prefix.keys + head * size : k.at + (start + j - n) * width + head * size;
      const valueAt = (j) => j < n ? P.at + j * P.cols + prefix.values + head * size : v.at + (start + j - n) * width + head * size;
      for (let i = 0; i < length; i++) query(i, n + i + 1, (start + i) * width + head * size, keyAt, valueAt);
    };
    let at = weights;
    const blocks = [];
    for (const { start, length } of texts) for (let head = 0; head < heads; head++) {
      const block = at;
      blocks.push({ start, length, head, block });
      at += length * (n + length);
      visit(start, length, head, (i, seen, place, keyAt, valueAt) => {
        const row = block + i * (n + length);
        let most = -Infinity, sum = 0;
        for (let j = 0; j < seen; j++) {
          const key = keyAt(j);
          let dot = 0;
          for (let d = 0; d < size; d++) dot += X[q.at + place + d] * X[key + d];
          X[row + j] = dot * scale;
          most = Math.max(most, X[row + j]);
        }
        for (let j = 0; j < seen; j++) sum += X[row + j] = Math.exp(X[row + j] - most);
        for (let j = 0; j < seen; j++) {
          const weight = X[row + j] /= sum, value = valueAt(j);
          for (let d = 0; d < size; d++) X[y.at + place + d] += weight * X[value + d];
        }
      });
    }
    if (y.learns) this.note(() => {
      const X = this.memory.floats, shift = (tensor) => tensor?.learns ? tensor.gradAt - tensor.at : 0;
      const ofQ = shift(q), ofK = shift(k), ofV = shift(v), ofP = shift(P), dP = new Float64Array(4096);
      for (const { start, length, head, block } of blocks) visit(start, length, head, (i, seen, place, keyAt, valueAt) => {
        const row = block + i * (n + length), dy = y.gradAt + place;
        let along = 0;
        for (let j = 0; j < seen; j++) {
          const value = valueAt(j), moved = j < n ? ofP : ofV;
          let dot = 0;
          for (let d = 0; d < size; d++) dot += X[dy + d] * X[value + d];
          if (moved) for (let d = 0; d < size; d++) X[value + moved + d] += X[row + j] * X[dy + d];
          dP[j] = dot;
          along += dot * X[row + j];
        }
        for (let j = 0; j < seen; j++) {
          const key = keyAt(j), moved = j < n ? ofP : ofK, dS = X[row + j] * (dP[j] - along) * scale;
          if (ofQ) for (let d = 0; d < size; d++) X[q.at + ofQ + place + d] += dS * X[key + d];
          if (moved) for (let d = 0; d < size; d++) X[key + moved + d] += dS * X[q.at + place + d];
        }
      });
    });
    return y;
  }

  // The rows of a table, or of several tensors: each of `rows` is [tensor, number of its row].
  pick(rows, cols) {
    const sources = new Set(rows.map(([tensor]) => tensor));
    const y = this.make(rows.length, cols, [...sources].some((tensor) => tensor.learns)), Y = y.data;
    rows.forEach(([tensor, row], i) => Y.set(tensor.data.subarray(row * cols, (row + 1) * cols), i * cols));
    if (y.learns) this.note(() => rows.forEach(([tensor, row], i) => {
      if (tensor.learns) plus(tensor.grad.subarray(row * cols, (row + 1) * cols), y.grad.subarray(i * cols, (i + 1) * cols));
    }));
    return y;
  }

  // The mean cross-entropy in nats of one target a row; the first of the notes that `backward` reads.
  crossEntropy(logits, targets) {
    const { rows, cols, data } = logits, most = new Float64Array(rows), sums = new Float64Array(rows);
    let loss = 0;
    for (let i = 0; i < rows; i++) {
      const row = data.subarray(i * cols, (i + 1) * cols);
      most[i] = row.reduce((a, b) => Math.max(a, b), -Infinity);
      for (const x of row) sums[i] += Math.exp(x - most[i]);
      loss += (most[i] + Math.log(sums[i]) - row[targets[i]]) / rows;
    }
    if (logits.learns) this.note(() => {
      const X = logits.data, dX = logits.grad;
      for (let i = 0; i < rows; i++) {
        for (let j = i * cols; j < (i + 1) * cols; j++) dX[j] += Math.exp(X[j] - most[i]) / sums[i] / rows;
        dX[i * cols + targets[i]] -= 1 / rows;
      }
    });
    return loss;
  }
}

function plus(to, from) {
  for (let i = 0; i < to.length; i++) to[i] += from[i];
}

function turn(floats, at, rows, cols, turned) {
  for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) floats[turned + j * rows + i] = floats[at + i * cols + j];
}
