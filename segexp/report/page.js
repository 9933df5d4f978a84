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
// The numbers of a figure: those of the place nearest to the pointer, or of the focused one (arrow keys move on).
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
let shown = null;
function show(mark) {
  if (shown) shown.classList.remove("on");
  shown = mark;
  tip.hidden = !mark;
  if (!mark) return;
  mark.classList.add("on");
  tip.textContent = mark.getAttribute("aria-label");
  const at = mark.getBoundingClientRect(), box = tip.getBoundingClientRect(), page = document.documentElement;
  const left = Math.min(Math.max((at.left + at.right - box.width) / 2, 8), page.clientWidth - box.width - 8);
  const above = at.top - box.height - 8;
  tip.style.left = `${Math.max(left, 0) + scrollX}px`;
  tip.style.top = `${(above < 0 ? at.bottom + 8 : above) + scrollY}px`;
}
function nearest(marks, event) {
  let found = null, least = 24;
  for (const mark of marks) {
    const box = mark.getBoundingClientRect(), {clientX: x, clientY: y} = event;
    const away = Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
    const distance = away + Math.hypot(x - (box.left + box.right) / 2, y - (box.top + box.bottom) / 2) / 1000;
    if (distance < least) [found, least] = [mark, distance];
  }
  return found;
}
for (const group of document.querySelectorAll(".tips:not(:empty)")) {
  const marks = Array.from(group.children), svg = group.ownerSVGElement;
  let held = null;
  svg.setAttribute("role", "group");
  marks.forEach((mark, n) => {
    const title = mark.querySelector("title");
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
    if (mark.tagName !== "a") mark.setAttribute("role", "img");
    mark.setAttribute("tabindex", n ? -1 : 0);
    mark.addEventListener("focus", () => show(mark));
    mark.addEventListener("blur", () => show(null));
  });
  svg.addEventListener("pointermove", event => { if (event.pointerType === "mouse") show(nearest(marks, event)); });
  svg.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") show(null); });
  svg.addEventListener("pointerdown", () => { held = shown; });
  svg.addEventListener("click", event => {
    const mark = event.detail ? nearest(marks, event) : event.target.closest(".tips > *");
    event.preventDefault();
    // The first tap shows the numbers, the second one leads to the sample.
    if (mark && mark.tagName === "a" && (event.pointerType !== "touch" || mark === held)) {
      location.hash = mark.getAttribute("href");
    } else if (mark) {
      mark.focus();
      show(mark);
    }
  });
  svg.addEventListener("keydown", event => {
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    const next = marks[marks.indexOf(event.target) + by];
    if (event.key === "Escape") show(null);
    if (!next) return;
    event.preventDefault();
    event.target.setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}
for (const input of document.querySelectorAll(".samples input[type=range]")) {
  const set = () => input.closest(".samples").style.setProperty("--opacity", input.value / 100);
  input.addEventListener("input", set);
  input.parentNode.hidden = false;
  set();
}
// The contents stay beside a wide page and are folded above a narrow one.
const wide = matchMedia("(min-width: 76rem)"), contents = document.querySelector("nav details");
const fold = () => { contents.open = wide.matches; };
wide.addEventListener("change", fold);
contents.addEventListener("click", event => { if (event.target.closest("a")) fold(); });
fold();
// What is folded on the screen is printed nevertheless.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
