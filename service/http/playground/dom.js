// Small helpers to build and find elements. Text is always set as text, never as markup.

export const $ = id => document.getElementById(id);

/** An element with properties, attributes (aria-*, data-*, role, for) and event listeners (on...). */
export function el(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** An SVG element with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function filled(made, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
  return made;
}

/** Say something to screen readers, once. */
export function announce(text) {
  $("status").textContent = text;
}

/** One tab stop for all *selector* in *box*; arrows, Home and End move between them. */
export function roving(box, selector, { columns = () => 1, onmove = () => {} } = {}) {
  const all = () => [...box.querySelectorAll(selector)].filter(one => !one.hidden && !one.disabled);
  const stop = chosen => all().forEach(one => { one.tabIndex = one === chosen ? 0 : -1; });
  box.addEventListener("focusin", event => {
    const found = event.target.closest(selector);
    if (found) stop(found);
  });
  box.addEventListener("keydown", event => {
    const list = all(), at = list.indexOf(event.target.closest(selector));
    if (at < 0) return;
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -at, End: list.length - 1 - at };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = list[Math.min(list.length - 1, Math.max(0, at + moves[event.key]))];
    next.focus();
    onmove(next);
  });
  const first = all();
  stop(first.find(one => one.matches("[aria-selected=true],[aria-pressed=true],[aria-current=true]")) ?? first[0]);
}

export const percent = share => `${(100 * share).toFixed(1)}\u00a0%`;

/** 1234567 -> "1.23 M". */
export function short(number) {
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (Math.abs(number) >= size) return Number((number / size).toPrecision(3)) + unit;
  }
  return String(Number(number.toPrecision(3)));
}

export const bytes = count => count < 1000 ? `${count} bytes` : `${short(count)}B`;

export const milliseconds = value => value < 0.01 ? "under 0.01\u00a0ms" : value < 0.095 ? `${value.toFixed(2)}\u00a0ms` : `${value.toFixed(1)}\u00a0ms`;
