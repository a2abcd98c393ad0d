// Answers as CSV (RFC 4180), safe to open in a spreadsheet.

const HEAD = ["file", "model", "version", "label", "probability", "abstained", "second_label", "second_probability", "error"];

/** A table with a row for each photo. */
export function table(items) {
  return [HEAD, ...items.map(row)].map(cells => cells.map(cell).join(",") + "\r\n").join("");
}

function row({ name, answer, problem, state }) {
  if (!answer) return [name, "", "", "", "", "", "", "", problem?.detail ?? state];
  const [first, second] = answer.predictions;
  return [name, answer.model.name, answer.model.version, first?.label, first?.probability, answer.abstained,
    second?.label, second?.probability, ""];
}

/** Quoted where needed. A text that a spreadsheet would run as a formula gets an apostrophe before it. */
function cell(value) {
  let text = String(value ?? "");
  if (typeof value === "string" && /^[\s\uFEFF]*[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20]/.test(text)) text = `'${text}`;
  return /[",\r\n']|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
