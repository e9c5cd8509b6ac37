// Training: AdamW, warm-up, clipping. The same steps as pedagogic_peft.train.

const BETA1 = 0.9, BETA2 = 0.999, EPSILON = 1e-8;

// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), with PyTorch's order of operations.
export class AdamW {
  constructor(parameters, weightDecay = 0) {
    Object.assign(this, { parameters, weightDecay, steps: 0 });
    this.moments = Object.fromEntries(Object.entries(parameters).map(([name, { values }]) =>
      [name, { first: new Float32Array(values.length), second: new Float32Array(values.length) }]));
  }

  // gradients: {name: array}; factor: what they are multiplied by first (clipping).
  step(gradients, rate, factor = 1) {
    this.steps++;
    const correct1 = 1 - BETA1 ** this.steps, correct2 = Math.sqrt(1 - BETA2 ** this.steps);
    for (const [name, { values }] of Object.entries(this.parameters)) {
      const { first, second } = this.moments[name], gradient = gradients[name];
      for (let i = 0; i < values.length; i++) {
        const g = factor * gradient[i];
        first[i] += (1 - BETA1) * (g - first[i]);
        second[i] = BETA2 * second[i] + (1 - BETA2) * g * g;
        values[i] = values[i] * (1 - rate * this.weightDecay) - rate / correct1 * first[i] / (Math.sqrt(second[i]) / correct2 + EPSILON);
      }
    }
  }
}

// The factor on the learning rate after `done` steps: it rises over the warm-up, then falls to zero.
export function warmupThenDecay(steps, warmup = 0.1) {
  const rising = roundHalfToEven(warmup * steps);
  return (done) => Math.min((done + 1) / (rising + 1), (steps - done) / Math.max(steps - rising, 1));
}

function roundHalfToEven(x) {  // Python's round
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

// The loss of a batch of {input_ids, labels}, with the labels that each position is to predict (-100: none).
function lossOf(model, tape, batch, deltas) {
  const { hidden, texts } = model.forward(tape, batch.map((e) => e.input_ids), deltas), rows = [], targets = [];
  batch.forEach(({ labels }, b) => {
    const { start, before } = texts[b];
    for (let i = 1; i < labels.length; i++) if (labels[i] !== -100) {
      rows.push(start + before + i - 1);
      targets.push(labels[i]);
    }
  });
  return { loss: tape.crossEntropy(model.logits(tape, hidden, rows), targets), count: targets.length };
}

export class Run {
  // examples: {input_ids, labels}; batches: the numbers of the examples of each step, or a generator to draw them.
  constructor(model, adaptation, examples, { steps, batchSize = 8, lr, warmup = 0.1, maxNorm = 1, random, batches }) {
    Object.assign(this, { model, adaptation, examples, steps, batchSize, lr, maxNorm, random, batches, done: 0, waiting: [] });
    this.optimizer = new AdamW(adaptation.parameters);
    this.factor = warmupThenDecay(steps, warmup);
  }

  batch() {
    if (this.batches) return this.batches[this.done].map((i) => this.examples[i]);
    if (!this.waiting.length) this.waiting = this.random.shuffled(this.examples.keys());  // another pass
    return this.waiting.splice(0, this.batchSize).map((i) => this.examples[i]);
  }

  // One step; returns its loss, before the parameters moved.
  step() {
    const { model, adaptation } = this, batch = this.batch();
    return model.step(true, (tape) => {
      const delta = adaptation.begin(tape), { loss } = lossOf(model, tape, batch, [delta]);
      if (!Number.isFinite(loss)) throw new Error(`the loss is ${loss} at step ${this.done + 1}: try a smaller learning rate`);
      tape.backward();
      const gradients = Object.fromEntries(Object.entries(delta.tensors).map(([name, tensor]) => [name, tensor.grad]));
      let square = 0;
      for (const gradient of Object.values(gradients)) for (const g of gradient) square += g * g;
      const norm = Math.sqrt(square);
      this.optimizer.step(gradients, this.lr * this.factor(this.done), Math.min(1, this.maxNorm / (norm + 1e-6)));
      this.done++;
      return loss;
    });
  }
}

// The mean loss over all learned tokens of some examples, without training.
export function meanLoss(model, examples, adaptations = [], size = 16) {
  let total = 0, tokens = 0;
  for (let i = 0; i < examples.length; i += size) model.step(false, (tape) => {
    const { loss, count } = lossOf(model, tape, examples.slice(i, i + size), adaptations.map((a) => a.begin(tape)));
    total += loss * count;
    tokens += count;
  });
  return total / tokens;
}

// The logits of the token after each text: an array a text. weights: of each adaptation, one number a text.
export function nextLogits(model, texts, adaptations = [], weights = [], size = 16) {
  const found = [];
  for (let i = 0; i < texts.length; i += size) model.step(false, (tape) => {
    const part = texts.slice(i, i + size);
    const deltas = adaptations.map((a, k) => a.begin(tape, weights[k]?.slice(i, i + size)));
    const { hidden, texts: layout } = model.forward(tape, part, deltas);
    const { data, cols } = model.logits(tape, hidden, layout.map(({ start, length }) => start + length - 1));
    part.forEach((_, b) => found.push(Array.from(data.subarray(b * cols, (b + 1) * cols))));
  });
  return found;
}

// The greedy continuation of each text, up to the end-of-text token.
export function continuations(model, texts, adaptations = [], { most = 24, end = model.config.eos_token_id, weights = [] } = {}) {
  const written = texts.map((ids) => ({ ids: [...ids], new: [], ended: false }));
  for (let i = 0; i < most; i++) {
    const open = written.map((one, k) => k).filter((k) => !written[k].ended);
    if (!open.length) break;
    const logits = nextLogits(model, open.map((k) => written[k].ids), adaptations, weights.map((w) => w && open.map((k) => w[k])));
    open.forEach((k, row) => {
      const best = logits[row].indexOf(Math.max(...logits[row]));
      if (best === end) written[k].ended = true;
      else { written[k].ids.push(best); written[k].new.push(best); }
    });
  }
  return written.map((one) => one.new);
}
