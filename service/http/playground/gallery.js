// All photos of this visit: small pictures with their answers, progress, and the table to download.

import { download, table } from "./csv.js";
import { $, announce, el, percent, roving } from "./dom.js";
import { session } from "./session.js";

const SIDE = 224;
const cards = new Map();
let pictures = Promise.resolve();
let head;

/** The gallery's frame. *actions*: show(photo), stop(), again(), clear(). */
export function prepare(actions) {
  const button = (text, run, props = {}) => el("button", { type: "button", onclick: run, ...props }, text);
  head = {
    progress: el("progress", { max: 1, value: 0, "aria-label": "Photos that are done" }),
    words: el("p", { className: "quiet" }),
    stop: button("Stop", actions.stop),
    again: button("Try the failed ones again", actions.again),
  };
  const list = el("div", { className: "cards" });
  $("gallery").replaceChildren(
    el("div", { className: "row" }, el("h2", {}, "All photos"), head.words, head.progress, head.stop, head.again,
      button("Download CSV", save), button("Clear", actions.clear)),
    list,
  );
  list.addEventListener("click", event => {
    const id = Number(event.target.closest("button")?.dataset.id);
    if (id) actions.show(session.photos.find(photo => photo.id === id));
  });
  roving(list, "button", { columns: () => getComputedStyle(list).gridTemplateColumns.split(" ").length });
  head.list = list;
}

/** Add cards for new photos. */
export function add(photos) {
  for (const photo of photos) {
    const card = makeCard(photo);
    cards.set(photo.id, card);
    head.list.append(card.button);
    pictures = pictures.then(() => cards.has(photo.id) && draw(photo, card.canvas));
  }
  $("gallery").hidden = session.photos.length < 2;
}

export function clear() {
  cards.clear();
  head.list.replaceChildren();
  $("gallery").hidden = true;
}

/** The photo's state has changed. */
export function update(photo) {
  const card = cards.get(photo.id);
  if (!card) return;
  card.button.dataset.state = photo.answer?.abstained && photo.state === "done" ? "unsure" : photo.state;
  card.words.replaceChildren(...caption(photo));
  progress();
}

export function current(photo) {
  for (const [id, card] of cards) {
    card.button.setAttribute("aria-current", id === photo?.id);
    card.button.tabIndex = id === photo?.id ? 0 : -1;
  }
}

function makeCard(photo) {
  const canvas = el("canvas", { width: 1, height: 1 }), words = el("span", { className: "words" });
  const button = el("button", { type: "button", "data-id": photo.id, "data-state": photo.state, tabIndex: -1 },
    canvas, words, el("span", { className: "file" }, photo.name));
  return { button, canvas, words };
}

function caption({ state, answer, problem }) {
  if (state === "done" && answer.abstained) return ["not sure"];
  if (state === "done") return [el("b", {}, answer.predictions[0]?.label ?? "no class"), ` ${percent(answer.predictions[0]?.probability ?? 0)}`];
  if (state === "failed") return [problem.title];
  return [{ waiting: "waiting", sending: "…", stopped: "not sent" }[state]];
}

/** One at a time, and small: many large photos at once would fill the memory. */
async function draw({ file, name }, canvas) {
  try {
    const whole = await createImageBitmap(file, { resizeWidth: SIDE, resizeQuality: "medium" });
    const side = Math.min(whole.width, whole.height);
    Object.assign(canvas, { width: SIDE, height: SIDE });
    canvas.getContext("2d").drawImage(whole, (whole.width - side) / 2, (whole.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
    whole.close();
  } catch { // This browser cannot show it.
    Object.assign(canvas, { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d");
    Object.assign(context, { font: "40px system-ui", textAlign: "center", fillStyle: getComputedStyle(canvas).getPropertyValue("--soft") });
    context.fillText(name.includes(".") ? name.split(".").at(-1).toUpperCase().slice(0, 6) : "?", SIDE / 2, SIDE / 2 + 14);
  }
}

function progress() {
  const count = state => session.photos.filter(photo => photo.state === state).length;
  const [all, done, failed, stopped] = [session.photos.length, count("done"), count("failed"), count("stopped")];
  const left = all - done - failed - stopped;
  head.progress.max = all;
  head.progress.value = all - left;
  head.progress.hidden = head.stop.hidden = !left;
  head.again.hidden = !(failed + stopped) || Boolean(left);
  const parts = [left ? `${all - left} of ${all}` : `${done} answered`, failed && `${failed} failed`, stopped && `${stopped} not sent`];
  head.words.textContent = parts.filter(Boolean).join(", ");
  if (!left && all > 1) announce(`All photos are done: ${head.words.textContent}.`);
}

function save() {
  const { name, version } = session.about ?? { name: "photos", version: "" };
  download(`loupe-${name}-${version}.csv`, table(session.photos));
}
