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
    ...groups.map((group, at) => slab(group, at, found)));
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

function totals({ layers, totals: all }) {
  const weighted = layers.filter(layer => layer.parameters).length;
  const parts = [`${layers.length} layers, ${weighted} with weights`, `${short(all.parameters)} parameters`,
    `${short(all.multiply_adds)} multiply-adds a photo`, all.milliseconds ? `${milliseconds(all.milliseconds)} on one core` : ""];
  return parts.filter(Boolean).join(" · ");
}

/** Neighbours with the same height and width belong together. A gate's single cells belong to the maps around it. */
export function grouped(layers) {
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

/** A group as a slab in perspective: its face is the map, its depth the channels. */
function slab(group, at, { totals: all, image_size: image }) {
  const wide = channels(group), size = group.side ? `${Math.round(group.side)}²` : "answer";
  const work = group.layers.reduce((sum, layer) => sum + layer.multiply_adds, 0) / (all.multiply_adds || 1);
  const face = 8 + 52 * (group.side / Math.max(...image)), deep = 3 + 4 * Math.log2(wide + 1);
  const meter = el("span", { className: "work" }, el("span"));
  meter.firstChild.style.width = `${100 * work}%`;
  return el("button", { type: "button", "data-at": at, "aria-pressed": false,
    "aria-label": `${group.side ? `maps of ${Math.round(group.side)} by ${Math.round(group.side)}` : "after pooling"}, up to ${wide} channels, ${group.layers.length} layers, ${(100 * work).toFixed(0)} % of the multiply-adds` },
  prism(face, deep), el("b", {}, size), el("span", {}, `${wide} ch`), meter);
}

function prism(face, deep) {
  const slant = deep * 0.35, height = 78, top = height - face;
  const width = face * 0.42 + deep + 2;
  const front = `M1,${top}l${face * 0.42},${-face * 0.16}v${face}l${-face * 0.42},${face * 0.16}z`;
  const right = 1 + face * 0.42, roof = top - face * 0.16;
  const side = `M${right},${roof}l${deep},${slant * 0.5}v${face - slant * 0.5}l${-deep},${slant * 0.2}z`;
  const tall = height + face * 0.16 + 4;
  return svg("svg", { viewBox: `0 -12 ${width + 1} ${tall + 14}`, width: width + 1, height: 104, preserveAspectRatio: "xMidYMid meet", "aria-hidden": "true" },
    svg("path", { class: "side", d: side }), svg("path", { class: "face", d: front }));
}

function openGroup(at) {
  if (at < 0 || !shown) return;
  const group = shown.groups[at];
  for (const one of document.querySelectorAll(".strip button")) one.setAttribute("aria-pressed", Number(one.dataset.at) === at);
  const blocks = Map.groupBy ? Map.groupBy(group.layers, block) : byBlock(group.layers);
  const rows = [...blocks].map(([name, layers]) => el("li", {}, el("span", { className: "block" }, name), el("span", { className: "chips" }, ...layers.map(chip))));
  const list = el("ul", { className: "rows" }, ...rows);
  list.addEventListener("click", event => {
    const name = event.target.closest("button")?.dataset.name;
    if (name) openLayer(group.layers.find(layer => layer.name === name));
  });
  $("blocks").replaceChildren(list);
  roving(list, "button");
}

/** The block that a layer belongs to: the first two parts of its name. */
const block = layer => layer.name.includes(".") ? layer.name.split(".").slice(0, 2).join(".") : "";

function byBlock(layers) {
  const found = new Map();
  for (const layer of layers) found.set(block(layer), [...(found.get(block(layer)) ?? []), layer]);
  return found;
}

function chip(layer) {
  const kernel = layer.kernel && !/global/.test(layer.kind) ? ` ${layer.kernel.join("×")}` : "";
  const stride = layer.stride?.some(step => step > 1) ? ` /${layer.stride[0]}` : "";
  return el("button", { type: "button", "data-name": layer.name, title: layer.name, className: layer.parameters ? "weighted" : "",
    "aria-pressed": layer.name === session.view.layer }, `${layer.kind}${kernel}${stride}`);
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
