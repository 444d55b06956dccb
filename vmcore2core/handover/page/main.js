// The views and their addresses, in the part behind "#": pid, tid, tab; q, show, sort, stack of the table; view.

let view = new URLSearchParams(), rows = null, found = [], process = null, asked = 0;
const ADDRESS = ["view", "pid", "tid", "tab", "q", "show", "sort", "stack"];

function address(more) {
  const all = new URLSearchParams();
  for (const name of ADDRESS) {
    const value = name in more ? more[name] : view.get(name);
    if (value !== null && value !== undefined && value !== "") all.set(name, value);
  }
  return "#" + all;
}
// The address of a view that is not a process's, with the search.
function elsewhere(name) { return address({ view: name === "machine" ? null : name, pid: null, tid: null, tab: null }); }
// "Back" returns from each view, but not from single letters of the search.
function go(more) {
  history.pushState(null, "", address(more));
  return arrive();
}
function stay(more) {
  history.replaceState(null, "", address(more));
  view = new URLSearchParams(location.hash.slice(1));
}
function words() { return find("#search").value.toLowerCase().split(/\s+/).filter(Boolean); }

function fill() {
  const asked = words(), show = find("#show").value;
  const only = view.has("stack") ? Number(view.get("stack")) : null;
  const [number, direction] = sorting();
  found = sort(matching(asked, show, only), number, direction, asked);
  rows.order(number, direction);
  rows.show(found, found.findIndex((i) => String(table.pid[i]) === view.get("pid")));
  find("#only").hidden = only === null;
  find("#count").textContent = found.length === table.pid.length ? plural(found.length, "process")
    : found.length.toLocaleString("en") + " of " + plural(table.pid.length, "process");
}
function sorting() {
  const text = view.get("sort") || "pid", name = text.replace(/^-/, "");
  const number = COLUMNS.findIndex((column) => column.name === name);
  return number < 0 ? [0, 1] : [number, text.startsWith("-") ? -1 : 1];
}
function cells(i) {
  return COLUMNS.map(({ name, of, shown }) => {
    if (name === "comm") return make("a", { href: address({ pid: table.pid[i], tid: null, tab: null, view: null }), title: table.comm[i] }, table.comm[i] || "(no name)");
    if (name === "in") return functionOf(i, words());
    if (name === "contents") return make("span", { class: table.complete[i] ? "good" : "bad", title: contents(i) }, contents(i));
    return shown ? shown(of(i)) : String(of(i));
  });
}

async function arrive() {
  const before = view.get("pid");
  if (/^#\d+$/.test(location.hash)) history.replaceState(null, "", "#pid=" + location.hash.slice(1));
  view = new URLSearchParams(location.hash.slice(1));
  document.body.dataset.view = view.has("pid") ? "process" : view.get("view") === "processes" ? "processes" : "machine";
  for (const link of document.querySelectorAll("nav a")) {
    link.href = elsewhere(link.dataset.view);
    if (link.dataset.view === document.body.dataset.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (find("#search").value !== (view.get("q") || "")) find("#search").value = view.get("q") || "";
  find("#show").value = view.get("show") || "";
  fill();
  const number = ++asked;
  if (!view.has("pid")) showMachine(before);
  else await showProcess(number, before);
  document.body.dataset.state = "ready";
}
function showMachine(before) {
  process = null;
  document.title = find("h1").textContent;
  find("#panel").replaceChildren(machine());
  find("#panel").scrollTop = 0;
  const last = find(".messages");
  if (last) last.scrollTop = last.scrollHeight;
  if (before) {
    const at = found.findIndex((i) => String(table.pid[i]) === before);
    if (at >= 0) { rows.reveal(at); (rows.link(at) || rows.box).focus({ preventScroll: true }); }
  }
}
async function showProcess(number, before) {
  const pid = Number(view.get("pid"));
  const panel = find("#panel");
  const fresh = before !== view.get("pid");
  try {
    if (!there(pid)) throw new Error("There is no process " + view.get("pid") + " in this directory.");
    const entry = await load(String(pid));
    if (number !== asked) return;  // meanwhile, the user has opened another one
    process = entry;
    const tid = view.has("tid") ? Number(view.get("tid")) : undefined;
    const { view: made, fill: fillBody } = present(entry, view.get("tab"), tid, (tab) => go({ tab: tab === "stacks" ? null : tab, tid: null }));
    document.title = entry.comm + " " + pid + " \u2013 " + find("h1").textContent;
    panel.replaceChildren(made);
    fillBody();
  } catch (error) {
    if (number === asked) panel.replaceChildren(bad(error.message));
  }
  panel.scrollTop = 0;
  scrollTo(0, 0);
  if (fresh) (panel.querySelector("h2") || panel).focus({ preventScroll: true });
  const asks = panel.querySelector(".asked");
  if (asks) asks.scrollIntoView({ block: "nearest" });
  const at = found.findIndex((i) => table.pid[i] === pid);
  if (at >= 0) rows.reveal(at);
}

function step(by) {
  if (!found.length) return;
  const active = document.activeElement.closest && document.activeElement.closest("#table tr[aria-rowindex]");
  const at = active ? Number(active.getAttribute("aria-rowindex")) - 2 + by : Math.max(0, rows.current);
  const next = Math.max(0, Math.min(found.length - 1, at));
  rows.reveal(next);
  const link = rows.link(next);
  if (link) link.focus({ preventScroll: true });
}
function tabs(event) {
  const all = [...document.querySelectorAll("[role=tab]")], at = all.indexOf(document.activeElement);
  if (at < 0) return false;
  const next = all[(at + (event.key === "ArrowRight" ? 1 : all.length - 1)) % all.length];
  next.click();
  requestAnimationFrame(() => { const tab = document.getElementById(next.id); if (tab) tab.focus(); });
  return true;
}
function toSearch() {
  if (!find("#list").offsetHeight) go({ pid: null, tid: null, tab: null, view: "processes" });
  find("#search").focus();
  find("#search").select();
}
function openFirst() { if (found.length) go({ pid: table.pid[found[0]], tid: null, tab: null, view: null }); }
function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("#keys").open) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  const inSearch = event.target.id === "search";
  if (event.key === "Escape") {
    if (inSearch && event.target.value) go({ q: null, stack: null });
    else if (view.has("pid")) go({ pid: null, tid: null, tab: null, view: "processes" });
    else return;
  } else if (event.key === "ArrowDown" && (inSearch || event.target.closest("#table"))) step(inSearch ? 0 : 1);
  else if (event.key === "ArrowUp" && event.target.closest("#table")) step(-1);
  else if (event.key === "Enter" && inSearch) openFirst();
  else if (event.key === "/" && !typing) toSearch();
  else if (event.key === "?" && !typing) find("#keys").showModal();
  else if (!/^Arrow(Left|Right)$/.test(event.key) || !tabs(event)) return;
  event.preventDefault();
}
// Print the whole view: also rows that are out of sight, and folded parts.
let folded = [];
function printing(on) {
  document.body.classList.toggle("printing", on);
  if (on) folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = on;
  for (const one of Rows.all) one.redraw();
}

async function begin() {
  heading();
  for (const [name, [title]] of Object.entries(SHOWN)) find("#show").append(make("option", { value: name }, title));
  try {
    prepare(await load("processes"));
  } catch (error) {
    find("#panel").replaceChildren(bad(error.message));
    document.body.dataset.state = "ready";
    return;
  }
  rows = new Rows(find("#table"), "Processes", COLUMNS, cells, (number) => {
    const [now, direction] = sorting();
    const down = number === now ? direction > 0 : COLUMNS[number].kind === "number" && number > 0;
    stay({ sort: (down ? "-" : "") + COLUMNS[number].name });
    fill();
  });
  find("#search").addEventListener("input", () => { stay({ q: find("#search").value }); fill(); });
  find("#show").addEventListener("change", () => { stay({ show: find("#show").value }); fill(); });
  find("#only").textContent = "with one stack \u2715";
  find("#only").addEventListener("click", () => go({ stack: null }));
  find("#tools").addEventListener("submit", (event) => event.preventDefault());
  find("#help").addEventListener("click", () => find("#keys").showModal());
  addEventListener("hashchange", arrive);
  addEventListener("keydown", pressed);
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));
  await arrive();
}
begin();
