const parts = { now: document.getElementById("now"), report: document.getElementById("report") };
let wanted = "", asking = false;

const place = (part, element) => [...part.querySelectorAll("summary, button, input, a, .scroll")].indexOf(element);

// what a reader has opened, hidden, sorted and reached stays when a part is written anew
function put(part, html) {
  const inside = element => element.closest("section")?.id ?? "";
  const name = details => details.id || `${inside(details)} ${details.querySelector("summary").textContent.replace(/ \(\d+\)$/, "")}`;
  const open = [...part.querySelectorAll("details[open]")].map(name);
  const hidden = [...part.querySelectorAll("input[data-column]:not(:checked)")].map(box => [inside(box), box.dataset.column]);
  const sorted = [...part.querySelectorAll("th[aria-sort]")].map(head =>
    [inside(head), head.cellIndex, head.getAttribute("aria-sort")]);
  const across = [...part.querySelectorAll(".scroll")].map(box => [inside(box), box.scrollLeft]);
  const focus = part.contains(document.activeElement) ? place(part, document.activeElement) : -1;
  part.innerHTML = html;
  for (const details of part.querySelectorAll("details")) details.open = open.includes(name(details));
  for (const [id, column] of hidden) {
    const box = document.getElementById(id)?.querySelector(`input[data-column="${column}"]`);
    if (box) { box.checked = false; show(box); }
  }
  for (const [id, column, way] of sorted) {
    const head = document.getElementById(id)?.querySelector("thead").rows[0].cells[column];
    if (head) { sort(head.firstElementChild); if (way === "descending") sort(head.firstElementChild); }
  }
  for (const [id, left] of across) {
    const box = id && document.getElementById(id)?.querySelector(".scroll");
    if (box) box.scrollLeft = left;
  }
  if (focus >= 0) [...part.querySelectorAll("summary, button, input, a, .scroll")][focus]?.focus({ preventScroll: true });
  said.textContent = "";
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

async function report() {
  asking = true;
  try {
    const found = await ask(`/report?shown=${wanted}`);
    if (found.html !== null) {
      const page = new DOMParser().parseFromString(found.html, "text/html");
      page.getElementById("said")?.remove();
      put(parts.report, (page.querySelector("nav")?.outerHTML ?? "") + (page.querySelector("main") ?? page.body).innerHTML);
      wanted = found.key;
    }
  } finally { asking = false; }
}

let last = "";
async function look() {
  let again = 1000 * Number(document.body.dataset.seconds);
  const state = document.getElementById("state"), bar = document.getElementById("progress");
  try {
    if (!document.hidden) {
      const now = await ask("/now");
      if (state.textContent !== now.state) state.textContent = now.state;
      [bar.max, bar.value] = [now.total || 1, now.done];
      if (now.html !== last) put(parts.now, last = now.html);
      if (now.key !== wanted && !asking) report().catch(() => {});
    }
  } catch {
    state.textContent = "raypft watch has ended, or does not answer; what stands here is as it was last seen";
    again = 10000;
  }
  setTimeout(look, again);
}
look();
