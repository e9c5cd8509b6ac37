// One memory for all numbers of the engine: tensors are places in it, and a step's tensors go all at once.

const PAGE = 65_536, START = 512, MOST = 8_192;  // pages of WebAssembly: 32 MB at the start, 512 MB at most

export class OutOfMemory extends Error {}

export class Memory {
  constructor() {
    this.pages = new WebAssembly.Memory({ initial: START, maximum: MOST });
    this.view();
    this.top = 4;  // the next free float; kept a multiple of 4
  }

  view() {
    this.floats = new Float32Array(this.pages.buffer);
  }

  // Take room for `size` numbers, all zero; returns where it begins. Views that were taken before may be
  // stale afterwards (the memory may have moved), so take room first and views after.
  take(size) {
    const at = this.top, end = at + Math.ceil(size / 4) * 4;
    if (end > this.floats.length) this.grow(end);
    this.top = end;
    this.floats.fill(0, at, end);
    return at;
  }

  grow(end) {
    const wanted = Math.ceil((4 * end - this.pages.buffer.byteLength) / PAGE);
    try {
      this.pages.grow(Math.max(wanted, 256));
    } catch {
      throw new OutOfMemory(`the browser gives the page no more than ${Math.round(this.pages.buffer.byteLength / 1e6)} MB`);
    }
    this.view();
  }

  // What is taken from here on is given back by free(mark).
  mark() { return this.top; }
  free(mark) { this.top = mark; }
}
