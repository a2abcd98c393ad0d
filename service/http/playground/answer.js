// The answer to one photo: the headline, the bars, the heat map's controls, and where the time went.

import { $, el, milliseconds, percent } from "./dom.js";
import { told } from "./notice.js";
import { canExplain, session } from "./session.js";

const STAGES = { read: "receive", decode: "decode", queue: "wait", inference: "model", rest: "other" };

/** Before any photo: what this model is. */
export function renderModel() {
  const { about } = session;
  if (!about) return $("answer").replaceChildren();
  const top1 = about.evaluation?.metrics?.top1, [tall, wide] = about.preprocess.crop;
  const some = about.labels.slice(0, 6).join(", "), more = about.labels.length - 6;
  const rows = {
    Network: about.architecture.network,
    Classes: `${about.labels.length}: ${some}${more > 0 ? ` and ${more} more` : ""}`,
    Right: top1 ? `${percent(top1.value)} of ${about.evaluation.count} held-out images (${percent(top1.low)} to ${percent(top1.high)})` : "not evaluated",
    "Not sure": about.abstain_threshold > 0 ? `below ${percent(about.abstain_threshold)}` : "never: this model always answers",
    Sees: `${wide} × ${tall} pixels`,
    Precision: about.precision,
  };
  $("answer").replaceChildren(
    el("p", { className: "kicker" }, `${about.name} version ${about.version}`),
    el("h2", { className: "headline" }, "What is in your photo?"),
    el("dl", { className: "facts" }, ...Object.entries(rows).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
  );
}

/** *actions*: again(), chooseClass(index), opacity(share). *other*: the answer of the version beside it. */
export function renderAnswer(photo, other, actions) {
  const panel = $("answer");
  panel.setAttribute("aria-busy", photo.state !== "done" && photo.state !== "failed");
  if (photo.state === "failed") return panel.replaceChildren(...told(photo.problem, actions.again));
  if (photo.state === "stopped") return panel.replaceChildren(el("h2", {}, "Not sent"), el("button", { type: "button", onclick: actions.again }, "Send it now"));
  if (!photo.answer) return panel.replaceChildren(...waiting(photo));
  const { answer } = photo, block = versionBlock(answer, actions.chooseClass);
  panel.replaceChildren(
    other ? el("div", { className: "versions" }, block, otherBlock(answer, other)) : block,
    ...(canExplain() ? [heatTools(actions)] : [el("p", { className: "quiet" }, "This model was exported without heat maps.")]),
    timing(answer),
  );
}

function waiting(photo) {
  const busy = photo.problem?.passes && photo.state === "waiting";
  return [el("h2", { className: "headline waiting" }, "Looking …"),
    busy ? el("p", {}, `${photo.problem.title}: ${photo.problem.detail}. ${photo.problem.advice}`) : null].filter(Boolean);
}

function versionBlock(answer, chooseClass) {
  return el("div", { className: "version" },
    el("p", { className: "kicker" }, `${answer.model.name} version ${answer.model.version}`),
    ...headline(answer), bars(answer, chooseClass));
}

function otherBlock(answer, other) {
  if (other instanceof Error) return el("div", { className: "version" }, ...told(other));
  const block = versionBlock(other, null);
  const same = answer.predictions[0]?.label === other.predictions[0]?.label;
  block.append(el("p", { className: "quiet" }, same ? "Both versions name the same class." : "The versions name different classes."));
  return block;
}

function headline(answer) {
  const [top] = answer.predictions, { threshold } = answer;
  if (answer.abstained || answer.unknown) {
    const why = answer.unknown ? "The photo is unlike those that this model was tested with."
      : `That is below ${percent(threshold)}, where this model stops answering.`;
    return [el("h2", { className: "headline unsure" }, "I am not sure"),
      el("p", { className: "under" }, `Likeliest is ${top.label}, at ${percent(top.probability)}. ${why}`)];
  }
  return [el("h2", { className: "headline" }, top?.label ?? "No class", " ", el("span", {}, top ? percent(top.probability) : ""))];
}

function bars(answer, chooseClass) {
  const { threshold } = answer;
  const list = el("ol", { className: "bars" }, ...answer.predictions.map(one => el("li", {}, bar(one, threshold, chooseClass))));
  if (!threshold) return list;
  return el("div", {}, list, el("p", { className: "quiet mark-note" }, `The line at ${percent(threshold)}: below it, this model is not sure.`));
}

function bar({ label, index, probability }, threshold, chooseClass) {
  const fill = el("span", { className: "fill" }), line = el("span", { className: "bar" }, fill);
  fill.style.width = `${100 * probability}%`;
  if (threshold) {
    const mark = el("span", { className: "mark" });
    mark.style.left = `${100 * threshold}%`;
    line.append(mark);
  }
  const parts = [el("span", { className: "label" }, label), line, el("span", { className: "value" }, percent(probability))];
  if (!chooseClass || !canExplain()) return el("div", { className: "one" }, ...parts);
  return el("button", { type: "button", className: "one", "data-index": index, "aria-pressed": false, onclick: () => chooseClass(index) }, ...parts);
}

function heatTools({ chooseClass, opacity }) {
  const names = el("datalist", { id: "classes" }, ...session.about.labels.map(label => el("option", { value: label })));
  const field = el("input", { id: "class", type: "search", placeholder: "any class", autocomplete: "off" });
  field.setAttribute("list", "classes");
  field.addEventListener("change", () => {
    const top = session.photo.answer.predictions[0]?.index;
    const index = field.value ? session.about.labels.indexOf(field.value) : top;
    field.setCustomValidity(index < 0 ? "This model has no such class." : "");
    if (field.reportValidity()) chooseClass(index);
  });
  const slider = el("input", { id: "opacity", type: "range", min: 0, max: 1, step: 0.05, value: session.opacity ?? 0.75 });
  slider.addEventListener("input", () => opacity(Number(slider.value)));
  return el("div", { className: "heat-tools" },
    el("label", {}, "Evidence for ", field), names, el("label", {}, "Strength ", slider),
    el("p", { id: "heat-note", className: "quiet", role: "status" }));
}

/** The heat map of *explanation* is drawn: say what it shows, and press the bar of its class. */
export function explained({ label, index, peak }) {
  for (const one of document.querySelectorAll(".one[data-index]")) one.setAttribute("aria-pressed", Number(one.dataset.index) === index);
  if ($("class")) $("class").value = label;
  if (!$("heat-note")) return;
  $("heat-note").textContent = peak > 0
    ? `Bright is where the photo speaks for “${label}” (Grad-CAM).`
    : `Nothing in the photo speaks for “${label}”.`;
}

export function notExplained(problem) {
  if ($("heat-note")) $("heat-note").textContent = `No heat map: ${problem.detail ?? problem.message}`;
}

function timing({ timing_ms: times, seconds }) {
  const known = { read: times.read, decode: times.decode, queue: times.queue, inference: times.inference };
  const rest = times.total - Object.values(known).reduce((sum, value) => sum + (value ?? 0), 0);
  const parts = Object.entries({ ...known, rest: Math.max(0, rest) }).filter(([, value]) => value !== undefined);
  const line = el("div", { className: "times", "aria-hidden": true }, ...parts.map(([name, value]) => {
    const part = el("span", { className: name });
    part.style.flexGrow = value;
    return part;
  }));
  return el("figure", { className: "timing" },
    el("figcaption", {}, `${milliseconds(times.total)} in the service`, el("span", { className: "quiet" }, `, ${milliseconds(1000 * seconds)} with the way there and back`)),
    line,
    el("ul", {}, ...parts.map(([name, value]) => el("li", { className: name }, `${STAGES[name]} ${milliseconds(value)}`))));
}
