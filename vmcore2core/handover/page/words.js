"use strict";
// Shared by all parts of the page. Strings from the dump reach the page as text nodes and titles, never as markup.

const STATES = [
  ["present", "mapped in"], ["page_cache", "page cache"], ["zero", "zero"], ["from_swap", "from swap"],
  ["from_file", "from the file"], ["swapped", "swapped out"], ["excluded", "excluded from the dump"],
  ["not_in_memory", "file page not in memory"], ["missing", "missing"], ["none", "no such page"],
];
const LETTERS = {
  R: "running or runnable", S: "sleeping", D: "uninterruptible sleep", T: "stopped", t: "traced", Z: "zombie", X: "dead",
  I: "idle", P: "parked",
};
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {}))
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const find = (selector) => document.querySelector(selector);
const mono = (text) => make("code", {}, text);
const soft = (text) => make("span", { class: "soft" }, text);
const bad = (text) => make("p", { class: "bad" }, text);

function amount(bytes) {
  if (bytes === null) return "?";
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) { bytes /= 1024; unit++; }
  return (unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)) + " " + UNITS[unit];
}
const known = (value) => value === null || value === undefined || value === "" ? "not known" : String(value);
const plural = (n, word) => n.toLocaleString("en") + " " + word + (n === 1 ? "" : word.endsWith("s") ? "es" : "s");
const utc = (seconds) => new Date(seconds * 1000).toISOString().replace("T", " ").replace(/(\.000)?Z$/, " UTC");
const state = (letter) => letter + (LETTERS[letter] ? ", " + LETTERS[letter] : "");

function definitions(pairs) {
  const list = make("dl");
  for (const [term, value] of pairs)
    if (value !== null && value !== undefined) list.append(make("dt", {}, term), make("dd", {}, value));
  return list;
}
function plainTable(caption, kind, heads, rows) {
  return make("div", { class: "scroll " + kind, tabindex: "0", role: "region", "aria-label": caption }, make("table", {},
    make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, rows.map((cells) => make("tr", {}, cells.map((cell) => make("td", {}, cell)))))));
}
// Shows the first children, and a button for as many more: no list is so long that it stops the page.
function some(children, step = 100) {
  const box = make("div"), waiting = children.slice();
  const button = make("button", { type: "button", class: "more" });
  function more() {
    button.before(...waiting.splice(0, step).map((child) => typeof child === "function" ? child() : child));
    button.textContent = waiting.length.toLocaleString("en") + " more";
    button.hidden = !waiting.length;
  }
  box.append(button);
  more();
  button.addEventListener("click", more);
  return box;
}
function copied(text, what) {
  const button = make("button", { type: "button", class: "copy", "aria-label": "Copy " + what }, "Copy");
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); } catch { fallback(); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  function fallback() {
    getSelection().selectAllChildren(button.previousElementSibling);
    document.execCommand("copy");
  }
  return make("span", { class: "command" }, mono(text), button);
}

function bar(pages, whole) {
  const total = Object.values(pages).reduce((sum, n) => sum + n, 0);
  const words = STATES.filter(([name]) => pages[name]).map(([name, shown]) => pages[name] + " " + shown).join(", ");
  const node = make("span", { class: whole ? "bar whole" : "bar", role: "img", title: words, "aria-label": words || "no pages" });
  for (const [name] of STATES) {
    if (!pages[name]) continue;
    const part = make("span", { class: name });
    part.style.flexGrow = String(pages[name] / total);
    node.append(part);
  }
  return node;
}
function legend(pages) {
  return make("ul", { class: "legend" }, STATES.filter(([name]) => pages[name]).map(([name, shown]) =>
    make("li", {}, make("i", { class: name }), shown + ": " + pages[name].toLocaleString("en"))));
}
