// Pillow's resize, bit for bit: antialiased filters with weights of 22 bits, an 8-bit picture between the two passes.
// Pictures are {data, width, height} with `data` a Uint8ClampedArray or Uint8Array of RGBA or RGB.
// Source: Pillow 13, src/libImaging/Resample.c (precompute_coeffs, normalize_coeffs_8bpc, ImagingResampleInner) and Geometry.c for `nearest`.

const PRECISION_BITS = 32 - 8 - 2;

const sinc = x => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const [HAMMING_A, HAMMING_B] = [Math.fround(0.54), Math.fround(0.46)];
const FILTERS = {
  box: { support: 0.5, weight: x => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: x => Math.max(0, 1 - Math.abs(x)) },
  hamming: {
    support: 1,
    weight: x => (Math.abs(x) >= 1 ? 0 : x === 0 ? 1 : sinc(x) * (HAMMING_A + HAMMING_B * Math.cos(x * Math.PI))),
  },
  bicubic: {
    support: 2,
    weight: signed => {
      const x = Math.abs(signed), a = -0.5;
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { support: 3, weight: x => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

// The part `window` = {left, top, width, height} of `picture` resized to `size` = {width, height}, as RGB.
export function resize(picture, size, window, filter) {
  if (filter === "nearest") return nearest(picture, size, window);
  const columns = weights(picture.width, size.width, window.left, window.width, FILTERS[filter]);
  const rows = weights(picture.height, size.height, window.top, window.height, FILTERS[filter]);
  const shrinks = picture.height - size.height;
  // Older releases than Pillow 13 always take the rows first; only pictures far taller than their target tell.
  if (shrinks > 0 && shrinks > 2 * (picture.width - size.width)) return alongRows(alongColumns(picture, rows), columns, 0, window.height);
  const first = rows.starts[0], last = rows.starts.at(-1) + rows.counts.at(-1);
  return alongColumns(alongRows(picture, columns, first, last - first), { ...rows, starts: rows.starts.map(start => start - first) });
}

// For each of `count` places from `first` on, of `target` in all: where its pixels start, how many, and their weights as integers.
function weights(source, target, first, count, { support, weight }) {
  const scale = source / target;
  const filterScale = Math.max(1, scale);
  const reach = support * filterScale;
  const most = Math.ceil(reach) * 2 + 1;
  const starts = [], counts = [], values = new Int32Array(most * count);
  for (let at = 0; at < count; at++) {
    const centre = (first + at + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(source, Math.trunc(centre + reach + 0.5));
    const exact = [];
    let sum = 0;
    for (let pixel = start; pixel < end; pixel++) {
      exact.push(weight((pixel - centre + 0.5) * (1 / filterScale)));
      sum += exact.at(-1);
    }
    exact.forEach((value, index) => {
      const share = (sum === 0 ? value : value / sum) * (1 << PRECISION_BITS);
      values[at * most + index] = Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
    starts.push(start);
    counts.push(end - start);
  }
  return { starts, counts, values, most };
}

// The rows from `top` on, `height` of them, with their columns resized.
function alongRows(picture, columns, top, height) {
  const width = columns.starts.length, channels = picture.data.length / (picture.width * picture.height);
  const data = new Uint8ClampedArray(width * height * 3);
  for (let y = 0, out = 0; y < height; y++) {
    const row = (top + y) * picture.width;
    for (let x = 0; x < width; x++, out += 3) {
      const at = (row + columns.starts[x]) * channels;
      mix(data, out, picture.data, at, channels, columns, x);
    }
  }
  return { data, width, height };
}

function alongColumns(picture, rows) {
  const height = rows.starts.length, width = picture.width, channels = picture.data.length / (width * picture.height);
  const data = new Uint8ClampedArray(width * height * 3);
  for (let y = 0, out = 0; y < height; y++) {
    const row = rows.starts[y] * width;
    for (let x = 0; x < width; x++, out += 3) mix(data, out, picture.data, (row + x) * channels, width * channels, rows, y);
  }
  return { data, width, height };
}

// Writes the weighted sum of pixels that lie `step` apart from `at` on.
function mix(data, out, source, at, step, { counts, values, most }, place) {
  let red = 1 << (PRECISION_BITS - 1), green = red, blue = red;
  for (let index = place * most, end = index + counts[place]; index < end; index++, at += step) {
    red += source[at] * values[index];
    green += source[at + 1] * values[index];
    blue += source[at + 2] * values[index];
  }
  data[out] = red >> PRECISION_BITS;
  data[out + 1] = green >> PRECISION_BITS;
  data[out + 2] = blue >> PRECISION_BITS;
}

function nearest(picture, size, window) {
  const channels = picture.data.length / (picture.width * picture.height);
  const columns = nearestPlaces(picture.width, size.width).slice(window.left), rows = nearestPlaces(picture.height, size.height).slice(window.top);
  const data = new Uint8ClampedArray(window.width * window.height * 3);
  for (let y = 0, out = 0; y < window.height; y++) {
    for (let x = 0; x < window.width; x++, out += 3) {
      const at = (rows[y] * picture.width + columns[x]) * channels;
      for (let channel = 0; channel < 3; channel++) data[out + channel] = picture.data[at + channel];
    }
  }
  return { data, width: window.width, height: window.height };
}

// Added up step by step, as Pillow does, since rounding decides.
function nearestPlaces(source, target) {
  const places = [], scale = source / target;
  for (let at = 0, place = scale / 2; at < target; at++, place += scale) places.push(Math.trunc(place));
  return places;
}
