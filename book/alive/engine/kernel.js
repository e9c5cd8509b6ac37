// The one heavy computation, C += A B: with WebAssembly's vector instructions, or in plain JavaScript.
// Addresses and strides are in numbers; A may be read transposed, by its strides.

const PIECE = 32;  // sums are made in pieces: their rounding errors grow with the square root of a piece's length

export async function makeKernel(memory, bytes) {
  try {
    if (!bytes) throw new Error("no WebAssembly asked for");
    const { instance } = await WebAssembly.instantiate(bytes, { page: { memory: memory.pages } });
    const { gemm } = instance.exports;
    return {
      name: "WebAssembly",
      gemm: (a, rowA, colA, b, rowB, c, rowC, m, n, k) => {
        for (let l = 0; l < k; l += PIECE)
          gemm(4 * (a + l * colA), 4 * rowA, 4 * colA, 4 * (b + l * rowB), 4 * rowB, 4 * c, 4 * rowC, m, n, Math.min(PIECE, k - l));
      },
    };
  } catch {  // a browser without vector instructions (Safari before 16.4): some ten times slower, the same but for rounding
    return { name: "JavaScript", gemm: plain(memory) };
  }
}

function plain(memory) {
  return (a, rowA, colA, b, rowB, c, rowC, m, n, k) => {
    const X = memory.floats, sums = new Float64Array(n);
    for (let i = 0; i < m; i++) {
      sums.fill(0);
      for (let l = 0; l < k; l++) {
        const x = X[a + i * rowA + l * colA], from = b + l * rowB;
        for (let j = 0; j < n; j++) sums[j] += x * X[from + j];
      }
      for (let j = 0; j < n; j++) X[c + i * rowC + j] += sums[j];
    }
  };
}
