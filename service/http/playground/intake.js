// Ways for photos to come in: drop, paste, choose, shoot.

import { $ } from "./dom.js";

/** *take* gets a list of files. */
export function listen(take) {
  for (const id of ["choose", "camera"]) {
    $(id).addEventListener("change", event => {
      take([...event.target.files]);
      event.target.value = ""; // The same file may be chosen again.
    });
  }
  $("more").addEventListener("click", () => $("choose").click());
  addEventListener("paste", event => {
    if (event.clipboardData?.files.length) take([...event.clipboardData.files]);
  });
  addEventListener("dragover", event => {
    event.preventDefault();
    document.body.toggleAttribute("data-over", true);
  });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.removeAttribute("data-over"); });
  addEventListener("drop", async event => {
    event.preventDefault();
    document.body.removeAttribute("data-over");
    take(await dropped(event.dataTransfer));
  });
}

/** Files, and those in dropped folders. */
async function dropped(transfer) {
  const entries = [...transfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some(entry => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry) {
  if (entry.isFile) return new Promise(done => entry.file(file => done([file]), () => done([])));
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise(done => reader.readEntries(done, () => done([])));
    if (!some.length) break;
    found.push(...some);
  }
  const visible = found.filter(one => !one.name.startsWith("."));
  return (await Promise.all(visible.map(inside))).flat();
}
