// The model in ONNX Runtime's WebAssembly build, on one thread: so no server needs special headers.

import { PhotoError, decode, fit, toPixels } from "./preprocess.js";

// Something that the visitor or the owner of the page can put right.
export class BundleError extends Error {}

// A function of v128 type: only an engine with WebAssembly SIMD finds it valid.
const SIMD_MODULE = new Uint8Array([
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7b, 3, 2, 1, 0, 10, 10, 1, 8, 0, 0x41, 0, 0xfd, 0x0f, 0xfd, 0x62, 0x0b,
]);

export class Classifier {
  // `say` is told what is going on. `variant` is one of the index's; without, the model is chosen.
  static async open(say = () => {}, variant = null) {
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD_MODULE))
      throw new BundleError(
        "This browser has no WebAssembly SIMD, which the model needs. Use Chrome or Edge 91, Firefox 89, Safari 16.4, or newer, on a device whose processor has it.",
      );
    say("Reading what the model is");
    const [index, manifest, golden] = await Promise.all(["bundle.json", "manifest.json", "golden/golden.json"].map(fetchJson));
    const classifier = new Classifier(index, manifest, golden);
    const ort = await import("./ort/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
    ort.env.logLevel = "error";
    classifier.ort = ort;
    await classifier.choose(say, variant);
    return classifier;
  }

  constructor(index, manifest, golden) {
    this.index = index;
    this.manifest = manifest;
    this.golden = golden;
    this.spec = manifest.preprocess;
  }

  // Takes the package's own variant, or fp32 where the first golden image gets another answer: int8 may compute otherwise elsewhere.
  async choose(say, asked) {
    const names = Object.keys(this.index.variants);
    if (asked !== null && !names.includes(asked)) throw new BundleError(`There is no variant ${asked}. Valid: ${names.join(", ")}.`);
    const others = names.filter(name => name !== this.index.default);
    for (const variant of asked === null ? [this.index.default, ...others] : [asked]) {
      say(`Loading the model (${(this.index.files[this.index.variants[variant]].bytes / 1e6).toFixed(1)} MB)`);
      const model = await fetchChecked(this.index.variants[variant], this.index);
      this.variant = variant;
      this.session = await this.ort.InferenceSession.create(model, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
      if ((await this.goldenDifference(this.golden.images[0])) <= this.golden.tolerance) return;
      await this.session.release();
    }
    throw new BundleError("This browser computes other answers than the model gave where it was built. The self-test has the figures.");
  }

  // Float32Array of the probability of each class for `pixels` (Uint8Array [H * W * 3]).
  async probabilities(pixels) {
    const [height, width] = this.spec.crop;
    const image = new this.ort.Tensor("uint8", pixels, [1, height, width, 3]);
    const { probabilities } = await this.session.run({ [this.manifest.input.name]: image }, ["probabilities"]);
    return probabilities.data;
  }

  // {predictions, abstained, timing_ms} for an image file (Uint8Array). Throws PhotoError.
  async classify(bytes, topK = 5) {
    const started = performance.now();
    const pixels = await toPixels(bytes, this.spec);
    return this.answer(pixels, started, topK);
  }

  // The same for a picture that is decoded already, such as a camera's.
  classifyPicture(picture, topK = 5) {
    const started = performance.now();
    return this.answer(fit(picture, this.spec), started, topK);
  }

  async answer(pixels, started, topK) {
    const prepared = performance.now();
    const probabilities = await this.probabilities(pixels);
    const ended = performance.now();
    const order = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one]).slice(0, topK);
    return {
      predictions: order.map(index => ({ label: this.manifest.labels[index], index, probability: probabilities[index] })),
      abstained: probabilities[order[0]] < this.manifest.abstain_threshold,
      timing_ms: { preprocess: prepared - started, model: ended - prepared },
    };
  }

  // The largest difference of a probability from the recorded one, for the very pixels that were recorded.
  async goldenDifference(image) {
    const picture = await decode(await fetchBytes(`golden/${image.file}.pixels.png`), { ...this.spec, formats: ["PNG"] });
    const pixels = new Uint8Array(picture.width * picture.height * 3);
    for (let at = 0, out = 0; out < pixels.length; at += 4, out += 3) pixels.set(picture.data.subarray(at, at + 3), out);
    return largestDifference(await this.probabilities(pixels), this.recorded(image));
  }

  recorded(image) {
    return this.variant.startsWith(this.index.precision) ? image.probabilities : image.sibling_probabilities;
  }

  // [{ok, text}]: every file against its hash, every golden image as pixels and as a file.
  async selfTest() {
    const lines = [await checkFiles(this.index)];
    const computed = [];
    for (const image of this.golden.images) computed.push(await this.goldenDifference(image));
    const worst = Math.max(...computed);
    lines.push({ ok: worst <= this.golden.tolerance, text: `model ${this.variant}: ${computed.length} golden images, largest difference ${worst.toExponential(1)}` });
    const decoded = [];
    let agree = 0;
    for (const image of this.golden.images) {
      const answer = await this.probabilities(await toPixels(await fetchBytes(`golden/${image.file}`), this.spec));
      const recorded = this.recorded(image);
      agree += largestIndex(answer) === largestIndex(recorded);
      decoded.push(largestDifference(answer, recorded));
    }
    const text = `from the files, as this browser decodes them: ${agree} of ${decoded.length} with the recorded label, largest difference ${Math.max(...decoded).toExponential(1)}`;
    lines.push({ ok: agree === decoded.length, text });
    return lines;
  }
}

async function checkFiles(index) {
  const names = Object.keys(index.files);
  if (!globalThis.crypto?.subtle) return { ok: true, text: `hashes of ${names.length} files not checked: that needs HTTPS or localhost` };
  try {
    for (const name of names) await fetchChecked(name, index);
  } catch (error) {
    return { ok: false, text: error.message };
  }
  return { ok: true, text: `${names.length} files as they were built` };
}

async function fetchChecked(name, index) {
  const bytes = await fetchBytes(name);
  if (!globalThis.crypto?.subtle) return bytes;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = [...digest].map(byte => byte.toString(16).padStart(2, "0")).join("");
  if (found !== index.files[name].sha256)
    throw new BundleError(`${name} was changed: it has ${bytes.length} bytes, was built with ${index.files[name].bytes}, and its SHA-256 differs. Copy web/ to the server again.`);
  return bytes;
}

async function fetchBytes(name) {
  let response;
  try {
    response = await fetch(new URL(name, import.meta.url));
  } catch {
    throw new BundleError(`${name} cannot be loaded: there is no connection to the server.`);
  }
  if (!response.ok) throw new BundleError(`${name} is missing on the server (status ${response.status}). Copy web/ to the server again.`);
  return new Uint8Array(await response.arrayBuffer());
}

async function fetchJson(name) {
  try {
    return JSON.parse(new TextDecoder().decode(await fetchBytes(name)));
  } catch (error) {
    throw error instanceof SyntaxError ? new BundleError(`${name} is damaged. Copy web/ to the server again.`) : error;
  }
}

function largestDifference(one, other) {
  let largest = 0;
  for (let at = 0; at < one.length; at++) {
    const difference = Math.abs(one[at] - other[at]);
    if (!(difference <= largest)) largest = difference; // NaN wins
  }
  return largest;
}

function largestIndex(values) {
  return values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
}

export { PhotoError };
