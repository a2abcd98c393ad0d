// The page: photos by choosing, dropping and pasting, the camera, and the self-test.

import { BundleError, Classifier, PhotoError } from "./model.js";

const $ = id => document.getElementById(id);
const TOP_K = 5;
const asked = new URLSearchParams(location.search).get("variant");
let classifier, shown, camera, waiting, loading = "Loading the page", latest = 0;

function say(text, kind = "") {
  $("note").textContent = text;
  $("note").className = kind;
}

async function open() {
  try {
    classifier = await Classifier.open(sayLoading, asked);
  } catch (error) {
    document.body.dataset.state = "failed";
    $("model").textContent = "The model cannot run here.";
    if (error instanceof BundleError) return say(error.message, "bad");
    say(`The model cannot be loaded: ${error.message}. Load the page again.`, "bad");
    throw error;
  }
  describe();
  document.body.dataset.state = "ready";
  say("");
  if (waiting) classifyFile(waiting);
  if (navigator.serviceWorker) await navigator.serviceWorker.register("sw.js");
}

function sayLoading(text = loading) {
  loading = text;
  say(waiting ? `${text} … Your photo is next.` : `${text} …`);
}

function describe() {
  const { manifest, index, variant } = classifier;
  const judged = manifest.evaluation;
  $("model").textContent =
    `${manifest.architecture.network}, ${manifest.labels.length} classes, ${variant.split(".")[0]}, ` +
    (judged ? `${(100 * judged.metrics.top1.value).toFixed(1)} % right on ${judged.count} held-out images` : "not evaluated");
  if (asked === null && variant !== index.default) $("model").textContent += `. ${index.default} computes other answers in this browser, so ${variant} answers.`;
  $("drop").querySelector("span").textContent = "Drop a photo here, paste one, or tap to choose.";
  $("samples").replaceChildren(...classifier.golden.images.slice(0, 4).map(sample));
}

function sample(image) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  picture.src = `golden/${image.file}`;
  picture.alt = `sample ${image.file}`;
  button.append(picture);
  button.addEventListener("click", async () => classifyFile(await (await fetch(picture.src)).blob()));
  return button;
}

async function classifyFile(file) {
  if (!classifier) {
    // The last photo that was chosen meanwhile is classified as soon as the model is there.
    waiting = file;
    show(file);
    sayLoading();
    return;
  }
  stopCamera();
  const turn = ++latest;
  show(file);
  say("…");
  try {
    const answer = await classifier.classify(new Uint8Array(await file.arrayBuffer()), TOP_K);
    if (turn === latest) report(answer);
  } catch (error) {
    if (!(error instanceof PhotoError)) throw error;
    if (turn === latest) {
      $("answers").replaceChildren();
      say(error.message, "bad");
    }
  }
}

function show(file) {
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  $("photo").src = shown;
  document.body.dataset.view = "photo";
}

function report({ predictions, abstained, timing_ms }) {
  $("answers").replaceChildren(...predictions.map(row));
  const total = timing_ms.preprocess + timing_ms.model;
  say(`${total.toFixed(0)} ms on this device, ${timing_ms.model.toFixed(0)} of them the model` + (abstained ? "; too unsure to call it an answer" : ""));
}

function row({ label, probability }, place) {
  const item = document.createElement("li");
  const [name, bar, percent] = ["span", "div", "span"].map(tag => document.createElement(tag));
  item.className = place === 0 ? "first" : "";
  name.textContent = label;
  for (const [key, value] of Object.entries({ role: "meter", "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": probability, "aria-label": label }))
    bar.setAttribute(key, value);
  const filled = document.createElement("i");
  filled.style.width = `${100 * probability}%`;
  bar.append(filled);
  percent.textContent = `${(100 * probability).toFixed(1)} %`;
  item.append(name, percent, bar);
  return item;
}

async function startCamera() {
  if (!navigator.mediaDevices) return say("The camera needs this page over HTTPS, or on localhost.", "bad");
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}.`, "bad");
  }
  $("video").srcObject = camera;
  await $("video").play();
  document.body.dataset.view = "camera";
  $("camera").textContent = "Stop the camera";
  watch(++latest);
}

// Classifies one frame after another until something else is asked for.
async function watch(turn) {
  const canvas = document.createElement("canvas"), video = $("video");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  while (turn === latest && camera) {
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    context.drawImage(video, 0, 0);
    const answer = await classifier.classifyPicture(context.getImageData(0, 0, canvas.width, canvas.height), TOP_K);
    if (turn === latest && camera) report(answer);
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  if (!camera) return;
  camera.getTracks().forEach(track => track.stop());
  camera = undefined;
  latest++;
  document.body.dataset.view = "start";
  $("camera").textContent = "Use the camera";
}

async function selfTest() {
  $("selftest").disabled = true;
  say("The self-test runs …");
  const lines = await classifier.selfTest();
  $("checks").replaceChildren(
    ...lines.map(({ ok, text }) => {
      const item = document.createElement("li");
      item.className = ok ? "ok" : "bad";
      item.textContent = text;
      return item;
    }),
  );
  say(lines.every(line => line.ok) ? "The self-test passed." : "The self-test failed.", lines.every(line => line.ok) ? "" : "bad");
  $("selftest").disabled = false;
}

const input = document.querySelector("input");
input.addEventListener("change", () => {
  if (input.files[0]) classifyFile(input.files[0]);
  input.value = "";
});
$("camera").addEventListener("click", () => (camera ? (stopCamera(), say("")) : startCamera()));
$("selftest").addEventListener("click", selfTest);
addEventListener("paste", event => event.clipboardData.files[0] && classifyFile(event.clipboardData.files[0]));
addEventListener("dragover", event => (event.preventDefault(), $("drop").classList.add("over")));
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", event => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) classifyFile(event.dataTransfer.files[0]);
});
$("model").textContent = "The model is being loaded.";
// One that was chosen before this script ran.
if (input.files[0]) classifyFile(input.files[0]);
open();
