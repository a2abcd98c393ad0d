// What the server saw: the file, each step of the preprocessing, and the very pixels that the model got.

import { $, bytes, el } from "./dom.js";
import { told } from "./notice.js";

const TURNED = { 2: "mirrored", 3: "upside down", 4: "mirrored, upside down", 5: "mirrored, turned left",
  6: "lying on its left side", 7: "mirrored, turned right", 8: "lying on its right side" };

export function renderNothing() {
  $("seen").replaceChildren(el("p", {}, "Choose a photo. You will see how the server reads it, and the pixels that the model gets."));
}

export function renderProblem(problem, again) {
  $("seen").replaceChildren(...told(problem, again));
}

/** *found*: the answer of /v1/preprocess. */
export function renderSeen({ file, steps, pixels_png: png }, name) {
  const picture = el("img", { className: "pixels", alt: `The pixels that the model gets of ${name}`, src: `data:image/png;base64,${png}` });
  $("seen").replaceChildren(
    el("figure", { className: "saw" }, picture, el("figcaption", {}, "The very pixels that the model gets. Everything outside the frame on the photo is cut off.")),
    el("h2", {}, "The file"),
    el("dl", { className: "facts" }, ...facts(file).flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])),
    el("h2", {}, "What was done to it"),
    el("ol", { className: "steps" }, ...steps.map(step => el("li", {}, el("b", {}, step.step), " ", step.sentence ?? ""))),
  );
}

function facts(file) {
  const [wide, tall] = file.size;
  const turn = file.orientation > 1 ? `${file.orientation}: ${TURNED[file.orientation] ?? "unknown"}` : "upright";
  return [["Format", `${file.format}, ${bytes(file.bytes)}`], ["Size", `${wide} × ${tall} pixels, ${((wide * tall) / 1e6).toFixed(1)} megapixels`],
    ["Colours", file.mode], ["Orientation", turn], ["Profile", file.colour_profile ?? "none"]];
}
