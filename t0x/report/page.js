"use strict";
// Sorting and filtering of the prompt table; everything else works without scripts.
const table = document.getElementById("prompt-table");
const body = table.tBodies[0];
const rows = [...body.rows];
const heads = [...table.tHead.rows[0].cells];
const key = (row, column) => {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
};
const compare = (a, b) =>
  typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const numeric = head.classList.contains("n");
    const before = head.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : numeric;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    rows.sort((a, b) => sign * compare(key(a, column), key(b, column)));
    body.append(...rows);
  });
});

const filter = document.getElementById("filter");
const group = document.getElementById("group");
const count = document.getElementById("count");
const apply = () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = `${row.textContent} ${row.dataset.category}`.toLowerCase();
    const inGroup = !group.value || row.dataset.group === group.value;
    row.hidden = !(inGroup && words.every((word) => text.includes(word)));
    shown += row.hidden ? 0 : 1;
  }
  count.value = `${shown} of ${rows.length} prompts`;
};
filter.addEventListener("input", apply);
group.addEventListener("change", apply);
document.querySelector(".controls").hidden = false;
apply();

// A link into the drill-down opens the folds above its target.
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let node = target; node; node = node.parentElement) {
    if (node.tagName === "DETAILS") node.open = true;
  }
  target.scrollIntoView();
};
addEventListener("hashchange", reveal);
document.querySelectorAll('a[href^="#"]').forEach((link) => link.addEventListener("click", () => setTimeout(reveal)));
reveal();
