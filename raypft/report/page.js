"use strict";
const said = document.getElementById("said");

function compare(a, b) {
  if (a !== "" && b !== "" && !isNaN(a) && !isNaN(b)) return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sort(button) {
  const head = button.closest("th"), body = button.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  const value = row => row.cells[column].dataset.order ?? row.cells[column].textContent.trim();
  const empty = row => value(row) === "" || row.cells[column].textContent.trim() === "-";
  const rows = [...body.rows].sort((a, b) =>
    empty(a) - empty(b) || (empty(a) ? 0 : (down ? -1 : 1) * compare(value(a), value(b))));
  body.append(...rows);
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  said.textContent = `sorted by ${button.textContent.trim()}, ${down ? "descending" : "ascending"}`;
}

function show(box) {
  const table = box.closest("section").querySelector("table"), column = Number(box.dataset.column);
  for (const row of table.rows) row.cells[column].hidden = !box.checked;
  said.textContent = `column ${box.parentElement.textContent.trim()} ${box.checked ? "shown" : "hidden"}`;
}

function follow() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.querySelector("summary").focus();
    target.scrollIntoView();
  }
}

for (const box of document.querySelectorAll("input[data-column]")) box.checked = true;
addEventListener("change", event => { if (event.target.matches("input[data-column]")) show(event.target); });
addEventListener("hashchange", follow);
addEventListener("click", event => {
  const button = event.target.closest("th button");
  if (button) sort(button);
  if (event.target.closest("a[href^='#run-']")) setTimeout(follow);
});
let opened = [];
addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details.run:not([open])")]; opened.forEach(d => d.open = true); });
addEventListener("afterprint", () => opened.forEach(d => d.open = false));
follow();
