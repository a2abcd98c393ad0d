// Feature maps: tiles of one grey PNG.

/** The sheet of *answer* as a bitmap; null for vectors. */
export async function readSheet({ sheet_png: png }) {
  if (!png) return null;
  const bytes = Uint8Array.from(atob(png), letter => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: "image/png" }));
}

/** Draw tile *at* of *sheet*, with a border around *cell* if there is one. */
export function drawTile(canvas, sheet, { tile, columns }, at, cell = null) {
  const [tall, wide] = [tile[0], tile.at(-1)], times = cell === null ? 1 : Math.max(1, Math.round(448 / wide));
  const size = [wide * times, tall * times];
  Object.assign(canvas, { width: size[0], height: size[1] });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(sheet, (at % columns) * wide, Math.floor(at / columns) * tall, wide, tall, 0, 0, ...size);
  if (!cell) return;
  context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--accent-strong") || "orange";
  context.lineWidth = Math.max(2, times / 6);
  context.strokeRect(cell[0] * times, cell[1] * times, times, times);
}

/** Numbers as thin bars around a line at zero. */
export function drawVector(canvas, values) {
  const width = Math.max(240, Math.min(1024, values.length)), height = 120;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), most = Math.max(0, ...values), least = Math.min(0, ...values);
  const y = value => (most - value) / (most - least || 1) * (height - 2) + 1, step = width / values.length;
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent") || "teal";
  values.forEach((value, at) => context.fillRect(at * step, Math.min(y(value), y(0)), Math.max(1, step * 0.8), Math.max(1, Math.abs(y(value) - y(0)))));
}
