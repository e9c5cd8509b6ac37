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
  } catch {  // a browser without vector instructions (Safari before 16.4): some four times slower, the same but for rounding
    return { name: "JavaScript", gemm: plain(memory) };
  }
}

// Four columns of a row are summed at once, in four local numbers.
function plain(memory) {
  return (a, rowA, colA, b, rowB, c, rowC, m, n, k) => {
    const X = memory.floats, row = new Float64Array(k);
    for (let i = 0; i < m; i++) {
      for (let l = 0; l < k; l++) row[l] = X[a + i * rowA + l * colA];
      const to = c + i * rowC;
      let j = 0;
      for (; j + 4 <= n; j += 4) {
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (let l = 0, at = b + j; l < k; l++, at += rowB) {
          const x = row[l];
          s0 += x * X[at];
          s1 += x * X[at + 1];
          s2 += x * X[at + 2];
          s3 += x * X[at + 3];
        }
        X[to + j] += s0;
        X[to + j + 1] += s1;
        X[to + j + 2] += s2;
        X[to + j + 3] += s3;
      }
      for (; j < n; j++) {
        let sum = 0;
        for (let l = 0; l < k; l++) sum += row[l] * X[b + j + l * rowB];
        X[to + j] += sum;
      }
    }
  };
}
