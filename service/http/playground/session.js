// What the page knows: the models, the photos, and the view that a link brings back.

import { get, post } from "./api.js";
import { read, write } from "./link.js";

export const session = {
  models: [],
  about: null, // the public manifest of the chosen version
  photos: [],
  photo: null, // the one that is shown
  view: read(),
};

/** Change the view and the address with it. Undefined or empty takes a value away. */
export function look(changes) {
  Object.assign(session.view, changes);
  write(session.view);
}

/** What names the chosen model and version in a request. */
export const chosen = (version = session.view.version) => ({ model: session.about?.name, version });

export const canInspect = () => session.about?.inspect === true;
export const canExplain = () => session.about?.outputs?.some(output => output.name === "cam") ?? false;

let counted = 0;
export function newPhoto(file) {
  return { id: ++counted, file, name: file.name || "pasted photo", answer: null, problem: null, state: "waiting", cache: new Map() };
}

/** The answer to a request about *photo*, asked for once. A failure is not kept. */
function once(photo, name, ask) {
  const { cache } = photo;
  if (!cache.has(name)) {
    cache.set(name, ask().catch(problem => {
      cache.delete(name);
      throw problem;
    }));
  }
  return cache.get(name);
}

export async function classify(photo, version) {
  const started = performance.now();
  const answer = await post("v1/classify", { ...chosen(version), top_k: 5 }, photo.file);
  return { ...answer, seconds: (performance.now() - started) / 1000, threshold: session.about.abstain_threshold };
}

/** The answer of another version, which has a threshold of its own. */
export const classifyAgainst = (photo, version) => once(photo, `against ${version}`, async () => {
  const about = get(`v1/models/${encodeURIComponent(session.about.name)}`, { version });
  return { ...await classify(photo, version), threshold: (await about).abstain_threshold };
});

/** The heat map of class *index*. */
export const explain = (photo, index) => once(photo, `explain ${index}`, async () =>
  (await post("v1/classify", { ...chosen(), top_k: 1, explain: "grid", explain_class: index }, photo.file)).explanation);

/** What the server did to the photo before the model got it. */
export const preprocess = photo => once(photo, "preprocess", () => post("v1/preprocess", chosen(), photo.file));

/** Feature maps of *layer*: 64 channels from *first*. */
export const features = (photo, { layer, precision, first }) => once(photo, `features ${layer} ${precision} ${first}`, () =>
  post("v1/features", { ...chosen(), layer, precision, channels: `${first}-${first + 63}` }, photo.file));

const listed = new Map();
export function layers(precision, timed = false) {
  const { name, version } = session.about;
  const key = [name, version, precision, timed].join(" ");
  if (!listed.has(key)) {
    const asked = get(`v1/models/${encodeURIComponent(name)}/layers`, { version, precision, timed: timed || undefined });
    listed.set(key, asked.catch(problem => {
      listed.delete(key);
      throw problem;
    }));
  }
  return listed.get(key);
}
