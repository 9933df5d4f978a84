"use strict";
// Tables are whole without this; it only sorts and filters them.
function valueOf(row, column, numeric) {
  const text = row.cells[column].textContent.trim();
  if (!numeric) return text;
  const number = parseFloat(text.replace(/\u2212/g, "-").replace(/^[[<]/, ""));
  return Number.isNaN(number) ? null : number;
}
function sortBy(table, header) {
  const column = header.cellIndex;
  const numeric = header.classList.contains("number");
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const keyed = Array.from(table.tBodies[0].rows, row => [valueOf(row, column, numeric), row]);
  const words = new Intl.Collator("en", {numeric: true});
  keyed.sort(([a], [b]) => {
    // What has no value comes last either way.
    const empty = [a, b].map(v => v === null || v === "" || v === "\u2013");
    if (empty[0] || empty[1]) return empty[0] - empty[1];
    const order = numeric ? a - b : words.compare(a, b);
    return down ? -order : order;
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, header));
    header.append(button);
  }
}
for (const input of document.querySelectorAll("input[data-filter]")) {
  const rows = Array.from(document.getElementById(input.dataset.filter).tBodies[0].rows);
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const output = input.parentNode.querySelector("output");
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !words.every(word => texts.get(row).includes(word));
      shown += !row.hidden;
    }
    output.textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", filter);
  input.parentNode.hidden = false;
  filter();
}
// What is folded on the screen is printed nevertheless.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
