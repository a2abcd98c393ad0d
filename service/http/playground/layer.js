// One layer: what it is in words and numbers, and its maps of the photo.

import { $, bytes, el, milliseconds, percent, roving, short } from "./dom.js";
import { drawTile, drawVector, readSheet } from "./maps.js";
import { told } from "./notice.js";
import { features, layers, look, session } from "./session.js";
import { mark } from "./stage.js";

const PAGE = 64;
let round = 0;
let facts = () => {};

export function forgetLayer() {
  round += 1;
  mark({ field: null });
}

/** *network*: the whole answer of /layers. *redraw*: called when another precision is chosen. */
export async function renderLayer(layer, network, redraw) {
  const own = ++round;
  mark({ field: null });
  const numbers = el("dl", { className: "facts" }), twin = await sibling(layer, network);
  if (own !== round) return;
  facts = () => numbers.replaceChildren(...rows(layer, twin).flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
  facts();
  const maps = el("div", { id: "maps" });
  $("layer").replaceChildren(
    el("h2", {}, layer.name, " ", el("span", { className: "kind" }, layer.kind)),
    el("p", {}, layer.sentence ?? ""), precisions(network, redraw) ?? "",
    el("div", { className: "inside" }, maps, numbers));
  if (!session.photo) return maps.replaceChildren(el("p", {}, "Choose a photo to see what this layer makes of it."));
  maps.replaceChildren(el("p", { className: "quiet" }, "Computing the maps …"));
  try {
    const wanted = session.view.precision === "both" ? network.precisions : [session.view.precision || network.precision];
    await fill(maps, layer, wanted, Number(session.view.channel || 0), network.image_size, () => own === round);
  } catch (problem) {
    if (own === round) maps.replaceChildren(...told(problem, () => renderLayer(layer, network, redraw)));
  }
}

document.addEventListener("timed", () => facts());

/** The same layer in the package's other precision, with its time; null unless both are shown. */
async function sibling({ name }, { precision, precisions }) {
  if (session.view.precision !== "both") return null;
  const other = precisions.find(one => one !== precision);
  const found = await layers(other, true).catch(() => null);
  const layer = found?.layers.find(one => one.name === name);
  return layer ? { ...layer, precision: other } : null;
}

function rows(layer, twin) {
  const pairs = value => value && [...new Set(value.flat())].length === 1 ? String(value.flat()[0]) : value?.map(one => [one].flat().join("+")).join("×");
  const field = layer.receptive_field;
  return [
    ["Output", layer.output_shape.slice(1).join(" × ")],
    ["Window", layer.kernel && `${layer.kernel.join("×")}, stride ${pairs(layer.stride)}, padding ${pairs(layer.padding)}${layer.groups > 1 ? `, ${layer.groups} groups` : ""}`],
    ["Formula", layer.formula],
    ["Parameters", layer.parameters ? short(layer.parameters) : "none"],
    ["Multiply-adds", layer.multiply_adds ? short(layer.multiply_adds) : "none"],
    ["Bytes moved", layer.bytes && bytes(layer.bytes)],
    ["A cell sees", !field ? "unknown: an operation before it has no rule" : field.whole_image ? "the whole image"
      : `${field.size.join(" × ")} pixels, every ${field.jump[0]}`],
    ["Time", took(layer) + (twin ? `; in ${twin.precision} ${took(twin)}` : "")],
  ].filter(([, value]) => value);
}

const took = ({ milliseconds: value }) => typeof value === "number" ? milliseconds(value) : "part of a neighbour's, or not measured yet";

function precisions(network, redraw) {
  if ((network.precisions ?? []).length < 2) return null;
  const choice = el("select", {}, ...network.precisions.map(one => el("option", { value: one }, one)), el("option", { value: "both" }, "both, side by side"));
  choice.value = session.view.precision || network.precision;
  choice.addEventListener("change", () => {
    look({ precision: choice.value });
    redraw();
  });
  return el("p", {}, el("label", {}, "Precision ", choice));
}

async function fill(box, layer, wanted, channel, image, current) {
  const first = PAGE * Math.floor(channel / PAGE);
  const answers = await Promise.all(wanted.map(precision => features(session.photo, { layer: layer.name, precision, first })));
  const sheets = await Promise.all(answers.map(readSheet));
  if (!current()) return;
  if (!sheets[0]) return box.replaceChildren(...answers.flatMap((answer, at) => vector(answer, wanted[at], wanted.length > 1)));
  const large = answers.map((answer, at) => largeMap(answer, sheets[at], layer, image, wanted.length > 1 ? wanted[at] : ""));
  const show = at => {
    large.forEach(one => one.show(at));
    look({ channel: answers[0].channels[at] || "" });
  };
  const again = next => {
    look({ channel: next || "" });
    return fill(box, layer, wanted, next, image, current);
  };
  box.replaceChildren(el("div", { className: "large" }, ...large.map(one => one.node)),
    thumbs(answers[0], sheets[0], channel - first, show), pager(answers[0], first, again) ?? "");
  large.forEach(one => one.show(channel - first));
}

function vector({ values, shape }, precision, named) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const canvas = el("canvas", { className: "vector", role: "img", "aria-label": `${values.length} numbers from ${least.toPrecision(3)} to ${most.toPrecision(3)}` });
  drawVector(canvas, values);
  const names = session.about.labels.length === values.length ? strongest(values) : "";
  return [el("figure", {}, canvas, el("figcaption", {}, `${named ? `${precision}: ` : ""}${shape.join(" × ")} numbers, from ${least.toPrecision(3)} to ${most.toPrecision(3)}${names}`))];
}

const strongest = values => ". Largest: " + values.map((value, at) => [value, session.about.labels[at]])
  .sort(([a], [b]) => b - a).slice(0, 3).map(([value, label]) => `${label} ${value.toPrecision(3)}`).join(", ");

/** A map with a cursor: its cell's receptive field is drawn on the photo. */
function largeMap(answer, sheet, layer, image, precision) {
  const canvas = el("canvas", { className: "map", tabIndex: 0, role: "img" }), words = el("figcaption", { "aria-live": "polite" });
  const [wide, tall] = [answer.tile.at(-1), answer.tile[0]];
  let at = 0, cell = null;
  const describe = () => {
    const [low, high] = answer.ranges[at], name = `${precision ? `${precision}, ` : ""}channel ${answer.channels[at]}`;
    canvas.setAttribute("aria-label", `Map of ${name}. Move over its cells with the pointer or the arrow keys.`);
    words.textContent = cell ? `${name}, row ${cell[1] + 1}, column ${cell[0] + 1}: ${sees(layer, answer, cell, image)}`
      : `${name}: ${low.toPrecision(3)} (black) to ${high.toPrecision(3)} (white), ${percent(answer.zeros[at])} are zero`;
  };
  const move = to => {
    cell = to && [Math.min(wide - 1, Math.max(0, to[0])), Math.min(tall - 1, Math.max(0, to[1]))];
    mark({ field: cell && fieldOf(layer, answer, cell, image) });
    drawTile(canvas, sheet, answer, at, cell);
    describe();
  };
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect();
    move([Math.floor((event.clientX - box.left) / box.width * wide), Math.floor((event.clientY - box.top) / box.height * tall)]);
  });
  canvas.addEventListener("pointerleave", () => move(null));
  canvas.addEventListener("focus", () => cell ?? move([wide >> 1, tall >> 1]));
  canvas.addEventListener("blur", () => move(null));
  canvas.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    move([(cell?.[0] ?? 0) + step[0], (cell?.[1] ?? 0) + step[1]]);
  });
  const show = next => {
    at = next;
    move(null);
  };
  return { node: el("figure", {}, canvas, words), show };
}

/** The receptive field of *cell* as fractions of the model's input, cut off at its border; null if it is unknown. */
function fieldOf(layer, { shape, tile }, [x, y], [tall, wide]) {
  const field = layer.receptive_field;
  if (!field) return null;
  if (field.whole_image) return [0, 0, 1, 1];
  const axis = (at, cells, tiles, side, i) => {
    const centre = field.start[i] + Math.floor((at + 0.5) * cells / tiles) * field.jump[i];
    return [centre - field.size[i] / 2, centre + field.size[i] / 2].map(edge => Math.min(1, Math.max(0, edge / side)));
  };
  const [top, bottom] = axis(y, shape.at(-2), tile[0], tall, 0), [left, right] = axis(x, shape.at(-1), tile.at(-1), wide, 1);
  return [left, top, right, bottom];
}

function sees(layer, answer, cell, image) {
  const field = fieldOf(layer, answer, cell, image);
  if (!field) return "what it sees is unknown";
  const [left, top, right, bottom] = field.map((part, at) => Math.round(part * image[at % 2 ? 0 : 1]));
  return `sees columns ${left} to ${right} and rows ${top} to ${bottom} of the model's pixels`;
}

function thumbs(answer, sheet, chosen, show) {
  const list = el("div", { className: "thumbs", role: "group", "aria-label": "Channels" }, ...answer.channels.map((channel, at) => {
    const canvas = el("canvas", {});
    drawTile(canvas, sheet, answer, at);
    return el("button", { type: "button", "aria-label": `Channel ${channel}`, "aria-pressed": at === chosen, "data-at": at }, canvas);
  }));
  const press = button => {
    for (const one of list.children) one.setAttribute("aria-pressed", one === button);
    show(Number(button.dataset.at));
  };
  list.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) press(button);
  });
  roving(list, "button", { columns: () => getComputedStyle(list).gridTemplateColumns.split(" ").length, onmove: press });
  return list;
}

function pager({ shape, channels }, first, again) {
  const all = shape[0];
  if (all <= PAGE) return null;
  const button = (words, next) => el("button", { type: "button", disabled: next < 0 || next >= all, onclick: () => again(next) }, words);
  return el("p", { className: "row" }, button("Earlier channels", first - PAGE),
    el("span", { className: "quiet" }, `${first} to ${first + channels.length - 1} of ${all}`), button("Later channels", first + PAGE));
}
