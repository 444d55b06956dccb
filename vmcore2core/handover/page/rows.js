// A table; only its rows in sight are in the page, so that 65,530 rows scroll like ten.

const MARGIN = 12;
const PRINTED = 5000;

class Rows {
  static all = new Set();
  // columns: {name, title, kind, sort: whether its head is a button}; cells: (item, row) -> the nodes of a row.
  constructor(place, label, columns, cells, sorted) {
    this.columns = columns;
    this.cells = cells;
    this.items = [];
    this.current = -1;
    this.first = this.last = -1;
    this.body = make("tbody");
    this.box = make("div", { class: "rows", tabindex: "0", role: "region", "aria-label": label });
    this.table = make("table", { "aria-label": label },
      make("thead", {}, make("tr", {}, columns.map((column, number) => this.head(column, number, sorted)))), this.body);
    this.box.append(this.table);
    place.append(this.box);
    this.box.addEventListener("scroll", () => this.draw(), { passive: true });
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.box);
    for (const one of Rows.all) if (!one.box.isConnected) { one.watch.disconnect(); Rows.all.delete(one); }
    Rows.all.add(this);
  }
  head(column, number, sorted) {
    const cell = make("th", { scope: "col", class: "c-" + column.name + (column.kind ? " " + column.kind : "") });
    if (!column.sort) cell.append(column.title);
    else cell.append(make("button", { type: "button", onclick: () => sorted(number) }, column.title));
    return cell;
  }
  order(number, direction) {
    [...this.table.tHead.rows[0].cells].forEach((cell, at) => {
      if (at === number) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
  }
  show(items, current = -1) {
    this.items = items;
    this.current = current;
    this.table.setAttribute("aria-rowcount", items.length + 1);
    this.redraw();
  }
  redraw() {
    this.first = this.last = -1;
    this.draw();
  }
  get height() { return this.measured || 30; }
  get seen() {
    if (document.body.classList.contains("printing")) return [0, Math.min(this.items.length, PRINTED)];
    const top = Math.floor(this.box.scrollTop / this.height), count = Math.ceil(this.box.clientHeight / this.height);
    const first = Math.max(0, Math.min(top - MARGIN, this.items.length - count));
    return [first, Math.min(this.items.length, top + count + MARGIN)];
  }
  draw() {
    const [first, last] = this.seen;
    if (first === this.first && last === this.last) return;
    const focused = this.body.contains(document.activeElement);
    [this.first, this.last] = [first, last];
    const rows = this.items.slice(first, last).map((item, at) => this.row(item, first + at));
    this.body.replaceChildren(this.gap(first), ...rows, this.gap(this.items.length - last));
    if (focused) (this.link(this.current) || this.box).focus({ preventScroll: true });
    if (!this.measured && rows.length && rows[0].offsetHeight) {
      this.measured = rows[0].offsetHeight;
      if (this.measured !== 30) this.redraw();
    }
  }
  gap(rows) {
    const gap = make("tr", { class: "gap", "aria-hidden": "true" });
    gap.style.height = (document.body.classList.contains("printing") ? 0 : rows * this.height) + "px";
    return gap;
  }
  row(item, at) {
    const row = make("tr", { "aria-rowindex": at + 2, class: at === this.current ? "open" : null });
    this.cells(item, at).forEach((content, number) => {
      const { name, kind } = this.columns[number];
      const text = typeof content === "string";
      row.append(make("td", { class: "c-" + name + (kind ? " " + kind : ""), title: text ? content : null }, content));
    });
    return row;
  }
  link(at) { return this.body.querySelector(`tr[aria-rowindex="${at + 2}"] a`); }
  reveal(at) {
    const head = this.table.tHead.offsetHeight, top = at * this.height;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + this.height + head > this.box.scrollTop + this.box.clientHeight)
      this.box.scrollTop = top + this.height + head - this.box.clientHeight;
    this.draw();
  }
  mark(at) {
    this.current = at;
    this.redraw();
    if (at >= 0) this.reveal(at);
  }
}
