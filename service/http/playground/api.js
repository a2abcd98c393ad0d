// The service's HTTP interface. Every failure is a `Problem` with words for a person.

const ADVICE = {
  body_too_large: "Scale the photo down and try again.",
  image_too_large: "Scale the photo down and try again.",
  too_many_pixels: "Scale the photo down and try again.",
  undecodable_image: "The file may be damaged or cut short. Open it in a photo program and save it again.",
  unsupported_format: "Save it as JPEG, PNG or WebP and try again.",
  empty_body: "The file is empty. Choose another one.",
  decode_timeout: "Scale the photo down and try again.",
  queue_full: "Many photos are waiting. It is tried again by itself.",
  too_busy: "Many photos are waiting. It is tried again by itself.",
  rate_limited: "It is tried again by itself.",
  deadline_exceeded: "The service is slow at the moment. Try again.",
  not_ready: "The model is being loaded. Try again in a moment.",
  unauthorised: "Enter an API key below. It stays in this page's memory and goes when you close it.",
  forbidden: "Enter an API key that may do this.",
  unknown_model: "Choose another model or version above.",
  output_unavailable: "This model was exported without heat maps.",
};
const AGAIN = new Set(["queue_full", "too_busy", "rate_limited", "not_ready"]);

let key = "";
export const useKey = given => { key = given; };

/** What went wrong: title, detail, what to do, and whether it passes by itself. */
export class Problem extends Error {
  constructor({ title, detail, code = "", status = 0, retryAfter = null }) {
    super(detail);
    Object.assign(this, { title, detail, code, status, retryAfter, advice: ADVICE[code] ?? "" });
  }

  get passes() { return AGAIN.has(this.code); }

  /** The same request may work later. */
  get repeats() { return !this.passes && (this.status === 0 || this.status >= 500); }

  get needsKey() { return this.status === 401 || this.status === 403; }
}

export const get = (path, query = {}) => ask(path, query, {});

/** POST the bytes of *file*. */
export const post = (path, query, file, signal) =>
  ask(path, query, { method: "POST", body: file, signal, headers: { "Content-Type": "application/octet-stream" } });

async function ask(path, query, options) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const address = path + (given.length ? `?${new URLSearchParams(given)}` : "");
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw await unanswered(options.body);
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const seconds = Number(response.headers.get("Retry-After"));
  throw new Problem({
    title: answer.title ?? `Status ${response.status}`,
    detail: answer.detail ?? "The answer has no explanation. A proxy may stand before the service.",
    code: answer.code, status: response.status, retryAfter: seconds > 0 ? seconds : null,
  });
}

/** The browser says only that it failed: the service is gone, or it closed the connection on a large photo. */
async function unanswered(body) {
  const alive = await fetch("livez").then(answer => answer.ok, () => false);
  if (!alive) {
    return new Problem({ code: "gone", title: "The service does not answer",
      detail: "Is it still running? Your photos are still here: start it again, then try again." });
  }
  const size = body?.size ? ` (${(body.size / 1e6).toFixed(1)} MB)` : "";
  return new Problem({ code: "cut", title: "The connection was closed while the photo was sent",
    detail: `The file${size} may be larger than the service takes, or it can no longer be read. Scale it down and try again.` });
}
