// From an image file to the pixels that the model takes, as the manifest's `preprocess` says. models/pixels/preprocess.py is the reference, and
// tests compare the two. What a browser cannot do alike: it decodes a large JPEG in full where Python reduces it in the DCT (`dct_margin`),
// and blends transparent pixels with its own rounding.

import { read, sniff, withoutExif } from "./containers.js";
import { resize } from "./resample.js";

// A photo that cannot be used; the message is for the person who chose it.
export class PhotoError extends Error {}

// Uint8Array [H * W * 3] for the image file `bytes` (Uint8Array). Throws PhotoError.
export async function toPixels(bytes, spec) {
  return fit(await decode(bytes, spec), spec);
}

// The upright picture {data (RGBA), width, height} in `bytes`.
export async function decode(bytes, spec) {
  if (!bytes.length) throw new PhotoError("The file is empty.");
  const format = sniff(bytes), accepted = spec.formats.join(", ");
  if (format === null) throw new PhotoError(`This is no image. Expected ${accepted}.`);
  if (!spec.formats.includes(format)) throw new PhotoError(`This is a ${format} file. Expected ${accepted}: convert it first.`);
  const header = read(bytes, format);
  if (header === undefined) throw new PhotoError(`This is a ${format} file, which this page cannot read: convert it first.`);
  if (header === null) throw new PhotoError(`This ${format} file is damaged or cut short.`);
  checkSize(header, spec);
  let picture;
  try {
    const bitmap = await createImageBitmap(withoutExif(bytes, format, header), {
      premultiplyAlpha: "none",
      colorSpaceConversion: spec.convert_icc ? "default" : "none",
    });
    // A canvas has a greatest size of its own, which differs between browsers.
    picture = drawn(bitmap, spec.background);
    bitmap.close();
  } catch {
    throw new PhotoError(`This ${format} file is damaged, or of a kind or size that this browser cannot read.`);
  }
  return spec.apply_exif_orientation ? upright(picture, header.orientation) : picture;
}

// Uint8Array [H * W * 3]: the picture resized, and cropped or padded, to the spec's `crop`.
export function fit(picture, spec) {
  const [height, width] = spec.crop;
  const size = resizedSize(picture, spec);
  if (spec.resize === "letterbox") return padded(resize(picture, size, { left: 0, top: 0, ...size }, spec.filter), width, height, spec.pad_colour);
  const left = roundHalfEven((size.width - width) / 2), top = roundHalfEven((size.height - height) / 2);
  return new Uint8Array(resize(picture, size, { left, top, width, height }, spec.filter).data.buffer);
}

function checkSize({ width, height }, spec) {
  if (Math.max(width, height) > spec.max_side || width * height > spec.max_pixels)
    throw new PhotoError(
      `The image has ${width} x ${height} pixels. Expected sides of at most ${spec.max_side} and at most ${spec.max_pixels} pixels: scale it down first.`,
    );
}

function drawn(bitmap, background) {
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  // Read back from memory: a GPU may round otherwise.
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = `rgb(${background.join(" ")})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// EXIF orientation -> where the upright picture's pixel (x, y) lies in the stored one of width w and height h (each less one).
const STORED_AT = {
  2: (x, y, w) => [w - x, y],
  3: (x, y, w, h) => [w - x, h - y],
  4: (x, y, w, h) => [x, h - y],
  5: (x, y) => [y, x],
  6: (x, y, w, h) => [y, h - x],
  7: (x, y, w, h) => [w - y, h - x],
  8: (x, y, w) => [w - y, x],
};

function upright(picture, orientation) {
  const storedAt = STORED_AT[orientation];
  if (!storedAt) return picture;
  const { width: stride, height: rows } = picture;
  const [width, height] = orientation >= 5 ? [rows, stride] : [stride, rows];
  const source = new Uint32Array(picture.data.buffer), data = new Uint32Array(width * height);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = 0; x < width; x++, out++) {
      const [column, row] = storedAt(x, y, stride - 1, rows - 1);
      data[out] = source[row * stride + column];
    }
  }
  return { data: new Uint8ClampedArray(data.buffer), width, height };
}

function resizedSize({ width, height }, spec) {
  const [cropHeight, cropWidth] = spec.crop;
  if (spec.resize === "stretch" && spec.stretch_size) return { width: spec.stretch_size, height: spec.stretch_size };
  if (spec.resize === "stretch") return { width: cropWidth, height: cropHeight };
  if (spec.resize === "shortest_side") {
    const side = spec.resize_size;
    return width <= height ? { width: side, height: Math.trunc((side * height) / width) } : { width: Math.trunc((side * width) / height), height: side };
  }
  if (width * cropHeight >= height * cropWidth) return { width: cropWidth, height: Math.max(1, roundHalfEven((height * cropWidth) / width)) };
  return { width: Math.max(1, roundHalfEven((width * cropHeight) / height)), height: cropHeight };
}

function padded(picture, width, height, colour) {
  const data = new Uint8Array(width * height * 3);
  for (let at = 0; at < data.length; at += 3) data.set(colour, at);
  const left = Math.floor((width - picture.width) / 2), top = Math.floor((height - picture.height) / 2);
  for (let y = 0; y < picture.height; y++) {
    data.set(picture.data.subarray(y * picture.width * 3, (y + 1) * picture.width * 3), ((top + y) * width + left) * 3);
  }
  return data;
}

// As Python's `round`.
function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
