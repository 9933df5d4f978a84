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
// The numbers of the place of a figure that is under the pointer or focused (arrow keys move on).
const tip = Object.assign(document.createElement("div"), {id: "tip", hidden: true});
document.body.append(tip);
let shown = null, held = null;
function show(mark) {
  shown?.classList.remove("on");
  shown = mark;
  tip.hidden = !mark;
  if (!mark) return;
  mark.classList.add("on");
  tip.textContent = mark.getAttribute("aria-label");
  const at = mark.getBoundingClientRect(), box = tip.getBoundingClientRect();
  const right = document.documentElement.clientWidth - box.width - 8, above = at.top - box.height - 8;
  tip.style.left = `${Math.max(Math.min((at.left + at.right - box.width) / 2, right), 8) + scrollX}px`;
  tip.style.top = `${(above < 0 ? at.bottom + 8 : above) + scrollY}px`;
}
function placeOf(event) { return event.target.closest?.(".tips > *") ?? null; }
document.addEventListener("pointerover", event => { if (event.pointerType === "mouse") show(placeOf(event)); });
for (const group of document.querySelectorAll(".tips:not(:empty)")) {
  const marks = Array.from(group.children), svg = group.ownerSVGElement;
  svg.setAttribute("role", "group");
  marks.forEach((mark, n) => {
    const title = mark.querySelector("title");
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
    if (mark.tagName !== "a") mark.setAttribute("role", "img");
    mark.setAttribute("tabindex", n ? -1 : 0);
  });
  svg.addEventListener("focusin", event => show(placeOf(event)));
  svg.addEventListener("focusout", () => show(null));
  svg.addEventListener("pointerdown", () => { held = shown; });
  svg.addEventListener("click", event => {
    // The first tap shows the numbers, the second one leads to the sample.
    if (event.pointerType !== "touch" || placeOf(event) === held) return;
    event.preventDefault();
    placeOf(event)?.focus();
  });
  svg.addEventListener("keydown", event => {
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    const next = marks[marks.indexOf(event.target) + by];
    if (event.key === "Escape") show(null);
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}
for (const input of document.querySelectorAll(".samples input[type=range]")) {
  input.addEventListener("input", () => input.closest(".samples").style.setProperty("--opacity", input.value / 100));
  input.parentNode.hidden = false;
}
// The contents stay beside a wide page and are folded above a narrow one.
const wide = matchMedia("(min-width: 76rem)"), contents = document.querySelector("nav details");
const fold = () => { contents.open = wide.matches; };
wide.addEventListener("change", fold);
contents.addEventListener("click", event => { if (event.target.closest("a")) fold(); });
fold();
// What is folded on the screen is printed nevertheless.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
