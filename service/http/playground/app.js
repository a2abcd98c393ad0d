// Puts the parts together: photos come in, are sent, and the chosen one is shown.

import { renderAnswer, renderModel, explained, notExplained } from "./answer.js";
import { $, announce, percent, roving } from "./dom.js";
import * as gallery from "./gallery.js";
import * as intake from "./intake.js";
import * as layers from "./layers.js";
import * as link from "./link.js";
import * as models from "./models.js";
import { askForKey, hideNotice, showNotice } from "./notice.js";
import { Queue } from "./queue.js";
import * as seen from "./seen.js";
import { canExplain, canInspect, classify, classifyAgainst, explain, look, newPhoto, preprocess, session } from "./session.js";
import * as stage from "./stage.js";

const TABS = ["answer", "seen", "layers"];
const queue = new Queue(async photo => {
  const { about } = session;
  const answer = await classify(photo);
  if (about === session.about) photo.answer = answer;
}, changed);

function take(files) {
  if (!files.length) return;
  const photos = files.map(newPhoto);
  session.photos.push(...photos);
  gallery.add(photos);
  show(photos[0]);
  if (session.about) photos.forEach(photo => queue.add(photo));
}

function changed(photo) {
  gallery.update(photo);
  if (photo !== session.photo) return;
  drawAnswer();
  if (photo.state !== "done") return;
  const [top] = photo.answer.predictions;
  announce(photo.answer.abstained ? "I am not sure." : `${top?.label}, ${percent(top?.probability ?? 0)}`);
  drawHeat();
}

/** Show *photo* large. Answers that come late for another one paint nothing. */
async function show(photo) {
  session.photo = photo;
  document.body.removeAttribute("data-empty");
  $("more").hidden = false;
  gallery.current(photo);
  drawAnswer();
  const size = await stage.showPhoto(photo);
  if (photo !== session.photo) return;
  caption(photo, size);
  if (size && session.about) stage.setCrop(stage.cropByRule(session.about.preprocess, size));
  drawHeat();
  layers.refreshMaps();
  if (session.about && canInspect()) await drawSeen(photo, size);
}

function caption(photo, size) {
  $("caption").hidden = false;
  $("caption").textContent = size ? `${photo.name}, ${size[0]} × ${size[1]}` : `This browser cannot show ${photo.name}.`;
}

/** What the server saw also says which part of the photo the model gets. */
async function drawSeen(photo, size) {
  const { about } = session;
  try {
    const found = await preprocess(photo);
    if (photo !== session.photo || about !== session.about) return;
    seen.renderSeen(found, photo.name);
    if (size) return stage.setCrop(found.crop_in_photo);
    await stage.showPixels(found.pixels_png, photo.name);
    $("caption").textContent = `This browser cannot show ${photo.name}. Here are the pixels that the model gets.`;
  } catch (problem) {
    if (photo === session.photo && about === session.about) seen.renderProblem(problem, () => drawSeen(photo, size));
  }
}

async function drawAnswer() {
  const { photo, view: { against } } = session;
  if (!photo) return renderModel();
  const draw = other => renderAnswer(photo, other, { again: () => queue.add(photo, { first: true }), chooseClass, opacity: setOpacity });
  draw(null);
  if (!against || photo.state !== "done") return;
  const other = await classifyAgainst(photo, against).catch(problem => problem);
  if (photo !== session.photo || against !== session.view.against) return;
  draw(other);
  drawHeat();
}

function chooseClass(index) {
  // The likeliest class needs no name: another photo has another one.
  const top = session.photo.answer.predictions[0]?.index;
  look({ class: index === top ? "" : session.about.labels[index] });
  drawHeat();
}

function setOpacity(share) {
  session.opacity = share;
  stage.setOpacity(share);
}

/** The heat map of the class that the view names, otherwise of the likeliest. */
async function drawHeat() {
  const { photo, view: { class: wanted }, about } = session;
  if (!photo?.answer || photo.state !== "done" || !canExplain() || $("answer").hidden) return stage.showHeat(null);
  const named = about.labels.indexOf(wanted);
  const index = named >= 0 ? named : photo.answer.predictions[0]?.index;
  try {
    const found = await explain(photo, index);
    if (photo !== session.photo || wanted !== session.view.class || about !== session.about || $("answer").hidden) return;
    stage.showHeat(found.grid);
    stage.setOpacity(session.opacity ?? 0.75);
    explained(found);
  } catch (problem) {
    if (photo === session.photo) notExplained(problem);
  }
}

function openTab(name) {
  for (const one of TABS) {
    $(one).hidden = one !== name;
    $(`tab-${one}`).setAttribute("aria-selected", one === name);
    $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
  }
  document.body.dataset.view = name;
  look({ view: name === "answer" ? "" : name });
  stage.mark({ frame: true, dim: name !== "answer", field: null });
  drawHeat();
  if (name === "layers") layers.renderLayers();
}

/** Ask for the model, as *choose* does it, and look at every photo with it. The newest choice counts. */
let choices = 0;
async function start(choose) {
  const own = ++choices, current = () => own === choices;
  queue.stop();
  try {
    const missing = await choose(current);
    if (!current()) return;
    hideNotice();
    useModel();
    if (missing?.length) announce($("about").textContent += `. The link names ${missing.join(" and ")}, which is not served here.`);
  } catch (problem) {
    if (!current()) return;
    $("about").textContent = "";
    showNotice(problem.title ? problem : Object.assign(problem, { title: "This page has failed" }), () => start(choose));
  }
}

function useModel() {
  const inspect = canInspect();
  for (const name of ["seen", "layers"]) $(`tab-${name}`).hidden = !inspect;
  $("closed").hidden = inspect;
  $("closed").textContent = "Layers and the model's pixels are hidden: LOUPE_INSPECT can open them to all or to an admin's API key.";
  layers.forget();
  seen.renderNothing();
  openTab(inspect && TABS.includes(session.view.view) ? session.view.view : "answer");
  for (const photo of session.photos) {
    photo.cache.clear();
    photo.answer = null;
  }
  drawAnswer();
  session.photos.forEach(photo => queue.add(photo, { first: photo === session.photo }));
  if (session.photo) show(session.photo);
}

function clearAll() {
  queue.stop();
  Object.assign(session, { photos: [], photo: null });
  gallery.clear();
  stage.hidePhoto();
  document.body.setAttribute("data-empty", "");
  $("caption").hidden = $("more").hidden = true;
  seen.renderNothing();
  drawAnswer();
  $("choose").focus();
}

const unsent = photo => photo.state === "failed" || photo.state === "stopped";

gallery.prepare({ show, stop: () => queue.stop(), clear: clearAll,
  again: () => session.photos.filter(unsent).forEach(photo => queue.add(photo)) });
intake.listen(take);
models.listen(start, drawAnswer);
roving(document.querySelector("[role=tablist]"), "[role=tab]", { onmove: tab => openTab(tab.id.slice(4)) });
document.querySelector("[role=tablist]").addEventListener("click", event => {
  const tab = event.target.closest("[role=tab]");
  if (tab) openTab(tab.id.slice(4));
});
$("key").addEventListener("click", () => askForKey(() => start(models.load)));
$("copy").addEventListener("click", async () => { $("local").textContent = await link.copy(); announce($("local").textContent); });
addEventListener("hashchange", () => {
  session.view = link.read();
  start(models.load);
});
if (location.pathname.endsWith("/")) start(models.load);
