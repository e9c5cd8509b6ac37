const rows = data.matrix.length, columns = data.matrix[0].length, r = at.r.value;
const copy = data.matrix.map((_, i) => data.matrix[0].map((_, j) => {
  let sum = 0;
  for (let k = 0; k < r; k++) sum += data.left[k][i] * data.right[k][j];
  return 255 * sum;
}));
const missing = data.matrix.map((row, i) => row.map((value, j) => value - copy[i][j]));
const colour = (value) => {  // blue below zero, white at zero, vermillion above
  const part = Math.min(1, Math.abs(value) / 255), end = value < 0 ? [0, 114, 178] : [213, 94, 0];
  return end.map((channel) => 255 + part * (channel - 255));
};
const panel = (title, matrix) => {
  const box = document.createElement("div"), canvas = document.createElement("canvas");
  box.style.textAlign = "center";
  canvas.style.cssText = "width: 100%; box-sizing: border-box; image-rendering: pixelated; border: 1px solid currentColor";
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d"), pixels = pen.createImageData(columns, rows);
  matrix.flat().forEach((value, i) => pixels.data.set([...colour(value), 255], 4 * i));
  pen.putImageData(pixels, 0, 0);
  box.append(title, canvas);
  return box;
};
stage.style.cssText = "display: grid; gap: .75rem; align-items: end; " +
  "grid-template-columns: repeat(auto-fit, minmax(6rem, 1fr))";
stage.replaceChildren(
  panel(data.name, data.matrix), panel(`best copy of rank ${r}`, copy), panel("missing", missing));
const table = [["rank", "error (%)"], ...data.errors.map((error, i) => [i + 1, error])];
return { table, say: `rank ${r}: ${r * (rows + columns)} numbers instead of ${rows * columns}, ` +
  `error ${data.errors[r - 1]} %` };
