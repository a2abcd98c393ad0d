// Which model and which version answer, and which one stands beside it.

import { get } from "./api.js";
import { $, el, percent } from "./dom.js";
import { look, session } from "./session.js";

/**
 * Ask what is served, choose what the link asks for, and fill the picker. Returns what the link asked for in vain.
 * Does nothing more once *current* says that something else was chosen meanwhile.
 */
export async function load(current) {
  const { models } = await get("v1/models");
  if (!current()) return [];
  session.models = models;
  const { view } = session, missing = [];
  const model = models.find(one => one.name === view.model) ?? models[0];
  if (view.model && model.name !== view.model) missing.push(`a model ${view.model}`);
  const versions = versionsOf(model);
  for (const name of ["version", "against"]) {
    if (!view[name] || versions.some(one => String(one.version) === view[name])) continue;
    missing.push(`version ${view[name]}`);
    look({ [name]: "" });
  }
  await choose(model, current);
  return missing;
}

async function choose(model, current) {
  look({ model: session.models.length > 1 || session.view.model ? model.name : "" });
  const about = await get(`v1/models/${encodeURIComponent(model.name)}`, { version: session.view.version });
  if (!current()) return;
  session.about = about;
  fill(model);
  describe();
}

/** The versions of *model* that are loaded, each with its aliases. */
function versionsOf({ versions, aliases }) {
  const namesOf = version => Object.entries(aliases).filter(([, at]) => at === version).map(([name]) => name);
  return versions.map(version => ({ version, aliases: namesOf(version) }));
}

function fill(model) {
  const versions = versionsOf(model);
  const words = ({ version, aliases }) => [version, ...aliases.map(alias => `(${alias})`)].join(" ");
  const options = list => list.map(one => el("option", { value: one.version }, words(one)));
  $("model").replaceChildren(...session.models.map(one => el("option", { value: one.name }, one.name)));
  $("model").value = model.name;
  $("version").replaceChildren(...options(versions));
  $("version").value = session.view.version || model.version;
  const rest = versions.filter(one => String(one.version) !== $("version").value);
  $("against").replaceChildren(el("option", { value: "" }, "none"), ...options(rest));
  $("against").value = session.view.against ?? "";
  $("against-field").hidden = !rest.length;
  $("picker").hidden = session.models.length === 1 && versions.length === 1;
}

function describe() {
  const { about } = session, top1 = about.evaluation?.metrics?.top1;
  const judged = top1 ? `${percent(top1.value)} right on ${about.evaluation.count} held-out images` : "not evaluated";
  $("about").textContent = `${about.name} version ${about.version}: ${about.architecture.network}, ${about.labels.length} classes, ${judged}`;
  document.title = `Loupe: ${about.name}`;
}

/** *changed* is told when another model or version is chosen, *compared* when only the one beside it is. */
export function listen(changed, compared) {
  const named = () => session.models.find(one => one.name === $("model").value);
  $("model").addEventListener("change", async () => {
    look({ version: "", against: "", class: "", layer: "", channel: "", precision: "" });
    await changed(current => choose(named(), current));
  });
  $("version").addEventListener("change", async () => {
    look({ version: $("version").value, against: "" });
    await changed(current => choose(named(), current));
  });
  $("against").addEventListener("change", () => {
    look({ against: $("against").value });
    compared();
  });
}
