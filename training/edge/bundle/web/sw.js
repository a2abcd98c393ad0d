// Keeps the page for when there is no network: the server is asked first, and what it last gave is the answer without it.

const CACHE = "loupe-edge";

addEventListener("install", event => event.waitUntil(keep()));
addEventListener("activate", event => event.waitUntil(clients.claim()));
addEventListener("fetch", event => {
  if (event.request.method === "GET" && event.request.url.startsWith(registration.scope)) event.respondWith(answer(event.request));
});

async function keep() {
  const index = await (await fetch("bundle.json")).json();
  // A second variant is for browsers where the first one fails; those ask for it, and then it is kept too.
  const spare = Object.keys(index.variants).filter(name => name !== index.default).map(name => index.variants[name]);
  const needed = Object.keys(index.files).filter(name => !spare.includes(name) && name !== "sw.js");
  const cache = await caches.open(CACHE);
  await cache.addAll(["./", "bundle.json", ...needed]);
  await skipWaiting();
}

async function answer(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch {
    return (await cache.match(request, { ignoreSearch: true })) ?? Response.error();
  }
}
