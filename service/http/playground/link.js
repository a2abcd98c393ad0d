// The view in the address: model, version, class, tab, layer, channel. Never the photo.

const NAMES = ["model", "version", "against", "view", "class", "layer", "channel", "precision"];

/** What the address asks for. */
export function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(NAMES.filter(name => given.get(name)).map(name => [name, given.get(name)]));
}

/** Bring the address up to date, without a step in the browser's history. */
export function write(state) {
  const kept = NAMES.filter(name => state[name] !== undefined && state[name] !== null && state[name] !== "");
  const text = new URLSearchParams(kept.map(name => [name, state[name]])).toString();
  const wanted = text ? `#${text}` : "";
  if (location.hash !== wanted) history.replaceState(null, "", location.pathname + location.search + wanted);
}

export async function copy() {
  try {
    await navigator.clipboard.writeText(location.href);
    return "The link is copied. It brings this view back, without the photo.";
  } catch {
    return "Copy the address of this page: it brings this view back, without the photo.";
  }
}
