// The network as a strip from input to answer: space shrinks, channels grow. Then its layers, block by block.

import { $, el, milliseconds, roving, short, svg } from "./dom.js";
import { told } from "./notice.js";
import { layers as listLayers, look, session } from "./session.js";
import { forgetLayer, renderLayer } from "./layer.js";

let shown = null; // { list, groups, precision } of what is drawn
let round = 0;

/** Draw the strip, and the layer that the view names. */
export async function renderLayers() {
  const own = ++round;
  if (!shown) $("layers").replaceChildren(el("p", { className: "quiet" }, "Reading the network …"));
  try {
    const found = await listLayers(served());
    if (own === round) draw(found);
    if (own === round) await time(found, own);
  } catch (problem) {
    shown = null;
    if (own === round) $("layers").replaceChildren(...told(problem, renderLayers));
  }
}

/** The model has changed: nothing of what is drawn holds any more. */
export function forget() {
  round += 1;
  shown = null;
  forgetLayer();
}

const served = () => session.view.precision === "both" ? "" : session.view.precision;

/** Milliseconds come later: they are measured, and the strip need not wait for them. */
async function time(found, own) {
  try {
    const timed = await listLayers(served(), true);
    if (own !== round || shown?.found !== found) return;
    const took = new Map(timed.layers.map(layer => [layer.name, layer.milliseconds]));
    for (const layer of found.layers) layer.milliseconds = took.get(layer.name) ?? null;
    found.totals.milliseconds = timed.totals.milliseconds;
    $("totals")?.replaceChildren(totals(found));
    document.dispatchEvent(new CustomEvent("timed"));
  } catch { /* The strip is whole without them. */ }
}

function draw(found) {
  const groups = grouped(found.layers);
  shown = { found, groups };
  const strip = el("div", { className: "strip", role: "group", "aria-label": "The network from input to answer" },
    ...groups.map((group, at) => slab(group, at, found, Math.max(...groups.map(one => one.side)))));
  strip.addEventListener("click", event => openGroup(Number(event.target.closest("button")?.dataset.at ?? -1)));
  $("layers").replaceChildren(
    el("p", { id: "totals", className: "quiet" }, totals(found)), strip,
    el("div", { id: "blocks" }), el("div", { id: "layer", "aria-live": "polite" }));
  roving(strip, "button");
  const wanted = found.layers.find(layer => layer.name === session.view.layer);
  const gone = session.view.layer && !wanted ? session.view.layer : "";
  openGroup(wanted ? groups.findIndex(group => group.layers.includes(wanted)) : 0);
  if (gone) $("layer").replaceChildren(el("p", {}, `This version has no layer ${gone}. Choose one above.`));
  if (wanted) openLayer(wanted);
}

/** Bounds and constants are no weights that were learned. */
const hasWeights = layer => layer.multiply_adds > 0 || layer.kind.includes("normalisation");

function totals({ layers, totals: all }) {
  const weighted = layers.filter(hasWeights).length;
  const parts = [`${layers.length} layers, ${weighted} with weights`, `${short(all.parameters)} parameters`,
    `${short(all.multiply_adds)} multiply-adds a photo`, all.milliseconds ? `${milliseconds(all.milliseconds)} on one core` : ""];
  return parts.filter(Boolean).join(" · ");
}

/** Neighbours with the same height and width belong together. A gate's single cells belong to the maps around it. */
function grouped(layers) {
  const area = layer => layer.output_shape.length === 4 ? layer.output_shape[2] * layer.output_shape[3] : 1;
  const last = layers.findLastIndex(layer => area(layer) > 1), groups = [];
  layers.forEach((layer, at) => {
    const side = at > last ? 0 : Math.sqrt(area(layer)), group = groups.at(-1);
    const inside = group && (group.side === side || (at < last && side === 1));
    if (inside) group.layers.push(layer);
    else groups.push({ side, layers: [layer] });
  });
  return groups;
}

const channels = group => Math.max(...group.layers.filter(layer => layer.output_shape.length === 4 || !group.side)
  .map(layer => layer.output_shape.at(layer.output_shape.length === 4 ? 1 : -1)));

/** A group as a box: its face is the map, its depth the channels. */
function slab(group, at, { totals: all }, largest) {
  const wide = channels(group), side = Math.round(group.side);
  const work = group.layers.reduce((sum, layer) => sum + layer.multiply_adds, 0) / (all.multiply_adds || 1);
  const meter = el("span", { className: "work" }, el("span"));
  meter.firstChild.style.width = `${100 * work}%`;
  const place = side ? `maps of ${side} by ${side}` : "after pooling";
  return el("button", { type: "button", "data-at": at, "aria-pressed": false,
    title: `${(100 * work).toFixed(0)} % of the multiply-adds` },
  box(5 + 67 * (group.side / largest), 1.5 + 3.4 * Math.log2(wide + 1)), el("b", {}, side ? `${side}²` : "answer"), el("span", {}, `${wide} ch`),
  el("span", { className: "aloud" }, `: ${place}, ${group.layers.length} layers, ${(100 * work).toFixed(0)} % of the multiply-adds`), meter);
}

function box(face, deep) {
  const [x, y, height] = [0.86 * deep, 0.5 * deep, 104], top = height - face - 1;
  const shape = (name, d) => svg("path", { class: name, d });
  return svg("svg", { width: face + x + 2, height, "aria-hidden": "true" },
    shape("roof", `M1,${top}l${x},${-y}h${face}l${-x},${y}z`),
    shape("side", `M${1 + face},${top}l${x},${-y}v${face}l${-x},${y}z`),
    shape("face", `M1,${top}h${face}v${face}h${-face}z`));
}

function openGroup(at) {
  if (at < 0 || !shown) return;
  const group = shown.groups[at];
  for (const one of document.querySelectorAll(".strip button")) one.setAttribute("aria-pressed", Number(one.dataset.at) === at);
  const rows = byBlock(group.layers).map(({ name, layers }) =>
    el("li", {}, el("span", { className: "block" }, name), el("span", { className: "chips" }, ...layers.map(chip))));
  const list = el("ul", { className: "rows" }, ...rows);
  list.addEventListener("click", event => {
    const name = event.target.closest("button")?.dataset.name;
    if (name) openLayer(group.layers.find(layer => layer.name === name));
  });
  $("blocks").replaceChildren(list);
  roving(list, "button");
}

/** By the first two parts of their names. A layer without a dot in its name belongs to what is before it. */
function byBlock(layers) {
  const blocks = [];
  for (const layer of layers) {
    const name = layer.name.includes(".") ? layer.name.split(".").slice(0, 2).join(".") : blocks.at(-1)?.name ?? "";
    if (blocks.at(-1)?.name !== name) blocks.push({ name, layers: [] });
    blocks.at(-1).layers.push(layer);
  }
  return blocks;
}

function chip(layer) {
  const kernel = layer.kernel && !/global/.test(layer.kind) ? ` ${layer.kernel.join("×")}` : "";
  const stride = layer.stride?.some(step => step > 1) ? ` /${layer.stride[0]}` : "";
  const kind = layer.kind.replace("depthwise convolution", "depthwise").replace("convolution", "conv");
  return el("button", { type: "button", "data-name": layer.name, title: `${layer.name}: ${layer.kind}`, className: hasWeights(layer) ? "weighted" : "",
    "aria-pressed": layer.name === session.view.layer }, `${kind}${kernel}${stride}`);
}

function openLayer(layer) {
  if (layer.name !== session.view.layer) look({ layer: layer.name, channel: "" });
  for (const one of document.querySelectorAll(".rows button")) one.setAttribute("aria-pressed", one.dataset.name === layer.name);
  renderLayer(layer, shown.found, renderLayers);
}

/** Another photo, or its pixels came: the maps of the open layer are asked for again. */
export function refreshMaps() {
  const layer = shown?.found.layers.find(one => one.name === session.view.layer);
  if (layer && !$("layers").hidden) renderLayer(layer, shown.found, renderLayers);
}
