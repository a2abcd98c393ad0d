// Problems, told kindly: what happened, why, what to do, and a way to go on.

import { useKey } from "./api.js";
import { $, announce, el } from "./dom.js";

/** A problem as elements: title, detail, advice, and a button to try *again* if that makes sense. */
export function told(problem, again) {
  const repeat = again && problem.repeats !== false
    ? el("button", { type: "button", className: "again", onclick: again }, "Try again") : null;
  const keyless = problem.status === 401;
  return [
    el("h2", {}, keyless ? "An API key is needed" : problem.title ?? "Something in this page failed"),
    // The service tells programs which header to send. A person has the field below.
    keyless && problem.detail.startsWith("no API key") ? null : el("p", {}, sentence(problem.detail ?? problem.message)),
    problem.advice ? el("p", { className: "advice" }, problem.advice) : null,
    problem.needsKey ? keyForm(again) : repeat,
  ].filter(Boolean);
}

export function showNotice(problem, again) {
  $("notice").replaceChildren(...told(problem, again));
  $("notice").hidden = false;
}

export function hideNotice() {
  $("notice").hidden = true;
  $("notice").replaceChildren();
}

/** A field for the key. It is kept in memory alone. */
export function keyForm(again) {
  const field = el("input", { type: "password", autocomplete: "off", required: true, id: "key-field" });
  const form = el("form", { className: "key" }, el("label", {}, "API key ", field), el("button", {}, "Use it"));
  form.addEventListener("submit", event => {
    event.preventDefault();
    useKey(field.value.trim());
    hideNotice();
    announce("The key is used from now on.");
    again?.();
  });
  return form;
}

export function askForKey(again) {
  $("notice").replaceChildren(
    el("h2", {}, "API key"),
    el("p", {}, "It is sent with every request of this page. It stays in memory, and is gone when you close the page."),
    keyForm(again),
  );
  $("notice").hidden = false;
  $("key-field").focus();
}

const sentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
