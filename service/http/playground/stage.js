// The photo, and what is drawn over it: the heat, the frame that the model sees, a receptive field.

import { $, svg } from "./dom.js";
import { paint } from "./heat.js";

let crop = [0, 0, 1, 1]; // what the model sees, as fractions of the upright photo
let marks = { dim: false, frame: false, field: null };
let url = "";

/** Show *photo*; resolves to [width, height] of the upright photo, or null if this browser cannot show it. */
export function showPhoto(photo) {
  URL.revokeObjectURL(url);
  url = URL.createObjectURL(photo.file);
  $("stage").hidden = false;
  clear();
  return showAt(url, `The photo ${photo.name}`, photo.name);
}

/** In place of a photo that the browser cannot show: the pixels that the model got. */
export function showPixels(png, name) {
  return showAt(`data:image/png;base64,${png}`, `What the model sees of ${name}`, name);
}

function showAt(address, words, name) {
  const picture = $("picture");
  Object.assign(picture, { alt: words, hidden: false, className: address.startsWith("data:") ? "enlarged" : "" });
  $("placeholder").hidden = true;
  return new Promise(done => {
    picture.onload = () => done([picture.naturalWidth, picture.naturalHeight]);
    picture.onerror = () => {
      picture.hidden = true;
      $("placeholder").hidden = false;
      $("placeholder").replaceChildren(name);
      done(null);
    };
    picture.src = address;
  });
}

export function hidePhoto() {
  $("stage").hidden = true;
  clear();
}

function clear() {
  $("heat").hidden = true;
  crop = [0, 0, 1, 1];
  mark({ field: null });
}

/** The model sees *given* of the photo: left, top, right, bottom as fractions. */
export function setCrop(given) {
  crop = given;
  place($("heat"));
  draw();
}

function place(canvas) {
  const [left, top, right, bottom] = crop.map(part => `${100 * part}%`);
  Object.assign(canvas.style, { left, top, width: `calc(${right} - ${left})`, height: `calc(${bottom} - ${top})` });
}

export function showHeat(grid) {
  $("heat").hidden = !grid;
  if (!grid) return;
  paint($("heat"), grid);
  place($("heat"));
}

export function setOpacity(share) {
  $("heat").style.opacity = share;
}

/** *dim*: shade what the model does not see. *frame*: its border. *field*: a rectangle of the model's input, as fractions. */
export function mark(given) {
  Object.assign(marks, given);
  draw();
}

function draw() {
  const [left, top, right, bottom] = crop;
  const whole = left <= 0 && top <= 0 && right >= 1 && bottom >= 1;
  const frame = `M${left},${top}H${right}V${bottom}H${left}Z`;
  const drawn = [];
  if (marks.dim && !whole) drawn.push(svg("path", { class: "veil", "fill-rule": "evenodd", d: `M0,0H1V1H0Z${frame}` }));
  if (marks.frame && !whole) drawn.push(svg("path", { class: "frame", d: frame }));
  if (marks.field) {
    const [x0, y0, x1, y1] = marks.field;
    const x = part => left + part * (right - left), y = part => top + part * (bottom - top);
    drawn.push(svg("path", { class: "field", d: `M${x(x0)},${y(y0)}H${x(x1)}V${y(y1)}H${x(x0)}Z` }));
  }
  $("marks").replaceChildren(...drawn);
}

/** The crop by the model's own rule, where the server does not tell it. Source: models/pixels/preprocess.py. */
export function cropByRule(spec, [width, height]) {
  const [tall, wide] = spec.crop;
  if (spec.resize === "stretch") return [0, 0, 1, 1];
  const scale = spec.resize === "letterbox" ? Math.min(wide / width, tall / height) : spec.resize_size / Math.min(width, height);
  const [x, y] = [wide / (scale * width) / 2, tall / (scale * height) / 2];
  return [0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y];
}
