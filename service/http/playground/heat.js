// The heat map: the grid of the explanation, interpolated, in colours that colour-blind people can order.

const STOPS = [[0, 90, 20, 140], [0.5, 240, 90, 40], [1, 255, 240, 120]]; // as the service's own overlay
const COVER = 0.8;
const DIM = 0.5;
const SIDE = 192;

/** Paint *grid* (rows of 0 to 1) on *canvas*: colour where the evidence is, shade where none is. */
export function paint(canvas, grid) {
  Object.assign(canvas, { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d"), image = context.createImageData(SIDE, SIDE);
  for (let y = 0, at = 0; y < SIDE; y += 1) {
    for (let x = 0; x < SIDE; x += 1, at += 4) {
      const heat = between(grid, (y + 0.5) / SIDE, (x + 0.5) / SIDE);
      image.data.set(shade(heat), at);
    }
  }
  context.putImageData(image, 0, 0);
}

/** The heat at a place, linear between the centres of the cells. */
function between(grid, down, right) {
  const y = clamp(down * grid.length - 0.5, grid.length - 1), x = clamp(right * grid[0].length - 0.5, grid[0].length - 1);
  const top = Math.floor(y), left = Math.floor(x);
  const under = Math.min(top + 1, grid.length - 1), beside = Math.min(left + 1, grid[0].length - 1);
  const [v, u] = [y - top, x - left];
  return (1 - v) * ((1 - u) * grid[top][left] + u * grid[top][beside]) + v * ((1 - u) * grid[under][left] + u * grid[under][beside]);
}

/** Colour and opacity of *heat*: a black veil gives way to the ramp. */
function shade(heat) {
  const [low, high] = heat < 0.5 ? [STOPS[0], STOPS[1]] : [STOPS[1], STOPS[2]];
  const part = (heat - low[0]) / (high[0] - low[0]);
  const veil = DIM * (1 - heat), cover = COVER * heat, opacity = cover + veil * (1 - cover);
  const colour = [1, 2, 3].map(i => (low[i] + part * (high[i] - low[i])) * (cover / opacity));
  return [...colour, 255 * opacity];
}

const clamp = (value, most) => Math.min(most, Math.max(0, value));
