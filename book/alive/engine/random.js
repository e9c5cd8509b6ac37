// Python's generator, so that the page draws what the book's Python draws from the same seed: the Mersenne
// Twister (Matsumoto & Nishimura 1998), and how the module `random` chooses with it.

const N = 624, M = 397;

export class Random {
  constructor(seed) {
    const words = [];  // a seed below 2^53, in words of 32 bits
    for (let rest = Math.abs(seed); rest > 0 || !words.length; rest = Math.floor(rest / 2 ** 32)) words.push(rest >>> 0);
    const state = this.state = new Uint32Array(N);
    state[0] = 19650218;
    for (let i = 1; i < N; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    let i = 1, j = 0;
    const next = (last) => { if (++i >= N) { state[0] = state[N - 1]; i = 1; } return last; };
    for (let k = Math.max(N, words.length); k; k--) {
      state[i] = (state[i] ^ Math.imul(state[i - 1] ^ (state[i - 1] >>> 30), 1664525)) + words[j] + j;
      next();
      if (++j >= words.length) j = 0;
    }
    for (let k = N - 1; k; k--) {
      state[i] = (state[i] ^ Math.imul(state[i - 1] ^ (state[i - 1] >>> 30), 1566083941)) - i;
      next();
    }
    state[0] = 0x80000000;
    this.at = N;
  }

  word() {
    const state = this.state;
    if (this.at >= N) {
      for (let k = 0; k < N; k++) {
        const y = (state[k] & 0x80000000) | (state[(k + 1) % N] & 0x7fffffff);
        state[k] = state[(k + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }
    let y = state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  random() { return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 2 ** 53; }

  below(n) {  // a whole number from 0 to n - 1
    const bits = 32 - Math.clz32(n);
    for (;;) {
      const found = this.word() >>> (32 - bits);
      if (found < n) return found;
    }
  }

  choice(items) { return items[this.below(items.length)]; }
  randint(low, high) { return low + this.below(high - low + 1); }

  sample(items, k) {
    const n = items.length, found = [];
    const small = 21 + (k > 5 ? 4 ** Math.ceil(Math.log(3 * k) / Math.log(4)) : 0);
    if (n <= small) {
      const pool = [...items];
      for (let i = 0; i < k; i++) {
        const j = this.below(n - i);
        found.push(pool[j]);
        pool[j] = pool[n - i - 1];
      }
      return found;
    }
    const taken = new Set();
    for (let i = 0; i < k; i++) {
      let j = this.below(n);
      while (taken.has(j)) j = this.below(n);
      taken.add(j);
      found.push(items[j]);
    }
    return found;
  }

  shuffled(items) {  // Fisher and Yates, as random.shuffle
    const made = [...items];
    for (let i = made.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [made[i], made[j]] = [made[j], made[i]];
    }
    return made;
  }

  between(low, high) { return low + (high - low) * this.random(); }

  normal(deviation, limit = Infinity) {  // Box and Muller; what lies beyond the limit is drawn again
    for (;;) {
      const z = Math.sqrt(-2 * Math.log(1 - this.random())) * Math.cos(2 * Math.PI * this.random());
      if (Math.abs(z) <= limit) return deviation * z;
    }
  }
}
