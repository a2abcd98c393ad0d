// What an encoded image says about itself: format, size as stored, EXIF orientation. As models/pixels/containers does in Python; damage in
// metadata is passed over.

const SIGNATURES = [
  ["JPEG", [0xff, 0xd8, 0xff]],
  ["PNG", [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]],
  ["GIF", [0x47, 0x49, 0x46, 0x38]],
  ["TIFF", [0x49, 0x49, 0x2a, 0]],
  ["TIFF", [0x4d, 0x4d, 0, 0x2a]],
  ["BMP", [0x42, 0x4d]],
];
const READERS = { JPEG: readJpeg, PNG: readPng, WEBP: readWebp, GIF: readGif, BMP: readBmp };

// The name of the format that the content shows, or null.
export function sniff(bytes) {
  if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 4) === "WEBP") return "WEBP";
  if (text(bytes, 4, 4) === "ftyp") return "HEIC or AVIF";
  const found = SIGNATURES.find(([, signature]) => signature.every((byte, at) => bytes[at] === byte));
  return found ? found[0] : null;
}

// {width, height, orientation, exif} of `bytes`, which `sniff` found to be `format`; null where the header is damaged or cut short;
// undefined for a format that the page cannot read.
// `exif` lists where its EXIF lies, as [start, end].
export function read(bytes, format) {
  if (!READERS[format]) return undefined;
  try {
    const found = READERS[format](bytes, new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    return found && found.width > 0 && found.height > 0 ? { orientation: 1, exif: [], ...found } : null;
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

// A Blob of the picture without EXIF: browsers turn a picture as its EXIF says whether asked to or not, and not all in every format.
export function withoutExif(bytes, format, { exif }) {
  if (format !== "WEBP") {
    const edges = [0, ...exif.flat(), bytes.length];
    return new Blob(edges.flatMap((edge, at) => (at % 2 === 0 ? [bytes.subarray(edge, edges[at + 1])] : [])));
  }
  // A file whose length stands in its head: here the chunk gets a name that means nothing.
  const renamed = bytes.slice();
  for (const [start] of exif) renamed.set([0x78, 0x78], start);
  return new Blob([renamed]);
}

function text(bytes, at, length) {
  return String.fromCharCode(...bytes.subarray(at, at + length));
}

function readJpeg(bytes, view) {
  const found = { exif: [] };
  let at = 2;
  while (true) {
    while (bytes[at] !== 0xff || [0x00, 0x01, 0xff].includes(bytes[at + 1])) if (++at >= bytes.length) return null;
    const marker = bytes[at + 1];
    if (marker === 0xd9) return null;
    if (marker === 0xda) return found;
    const length = view.getUint16(at + 2);
    // Frame headers. Source: ITU T.81, table B.1.
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      found.height = view.getUint16(at + 5);
      found.width = view.getUint16(at + 7);
    }
    if (marker === 0xe1 && text(bytes, at + 4, 6) === "Exif\0\0") {
      found.orientation = exifOrientation(bytes.subarray(at + 10, at + 2 + length));
      found.exif.push([at, at + 2 + length]);
    }
    at += 2 + length;
  }
}

function readPng(bytes, view) {
  const found = { width: view.getUint32(16), height: view.getUint32(20), exif: [] };
  for (let at = 8, next; at + 12 <= bytes.length && text(bytes, at + 4, 4) !== "IEND"; at = next) {
    next = at + 12 + view.getUint32(at);
    if (text(bytes, at + 4, 4) !== "eXIf" || next > bytes.length) continue;
    found.exif.push([at, next]);
    const intact = crc32(bytes.subarray(at + 4, next - 4)) === view.getUint32(next - 4);
    if (intact) found.orientation ??= exifOrientation(bytes.subarray(at + 8, next - 4));
  }
  return found;
}

// Source: RFC 9649, section 2.
function readWebp(bytes, view) {
  const kind = text(bytes, 12, 4);
  const found = { exif: [] };
  if (kind === "VP8X") {
    found.width = 1 + view.getUint16(24, true) + (bytes[26] << 16);
    found.height = 1 + view.getUint16(27, true) + (bytes[29] << 16);
  } else if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    found.width = 1 + (bits & 0x3fff);
    found.height = 1 + ((bits >> 14) & 0x3fff);
  } else if (kind === "VP8 ") {
    found.width = view.getUint16(26, true) & 0x3fff;
    found.height = view.getUint16(28, true) & 0x3fff;
  }
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (text(bytes, at, 4) === "EXIF") {
      found.orientation = exifOrientation(bytes.subarray(at + 8, at + 8 + length));
      found.exif.push([at, at + 8 + length]);
    }
    at += 8 + length + (length & 1);
  }
  return found;
}

function readGif(bytes, view) {
  return { width: view.getUint16(6, true), height: view.getUint16(8, true) };
}

function readBmp(bytes, view) {
  if (view.getUint32(14, true) === 12) return { width: view.getUint16(18, true), height: view.getUint16(20, true) };
  return { width: view.getInt32(18, true), height: Math.abs(view.getInt32(22, true)) };
}

// 1 to 8, from a TIFF header and its first directory; 1 where anything is amiss.
function exifOrientation(exif) {
  if (text(exif, 0, 6) === "Exif\0\0") exif = exif.subarray(6);
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  const little = text(exif, 0, 4) === "II*\0";
  if (!little && text(exif, 0, 4) !== "MM\0*") return 1;
  try {
    const start = view.getUint32(4, little);
    const count = view.getUint16(start, little);
    for (let at = start + 2; at < start + 2 + 12 * count; at += 12) {
      if (view.getUint16(at, little) !== 274) continue;
      const kind = view.getUint16(at + 2, little);
      const value = kind === 1 ? exif[at + 8] : kind === 3 ? view.getUint16(at + 8, little) : kind === 4 ? view.getUint32(at + 8, little) : 0;
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}
