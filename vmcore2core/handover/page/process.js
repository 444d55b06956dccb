// A process: its stacks, memory, files and images, its missing parts, and how to open its core.

const ADVICE = {
  excluded: "They were left out when the dump was written: makedumpfile -d 17 keeps them, and vmcore2core capture writes cores before it drops them.",
  not_in_dump: "The dump does not have them: a part of it, or of the machine's memory, was not written.",
  truncated: "The dump file ends before them: it was copied in part, or there was no room for it. Copy it again, and compare sizes.",
  damaged: "The dump file is damaged there: copy it again, and compare checksums.",
  swapped: "They were swapped out. Give the machine's swap files in their order: --swap FILE.",
  swapped_to_disk: "They were swapped to disk. Give the machine's swap file or partition: --swap FILE.",
  swap_unreadable: "They were swapped to compressed memory (zram, zswap) that cannot be read in this dump.",
  swap_cut_off: "The swap file that was given ends before them: copy all of it.",
  not_cached: "They are parts of files that were not in memory. Give a folder with the machine's files: --sysroot DIR.",
  table_missing: "The page table is not in the dump, so it is not known where they were.",
  table_broken: "The page table is broken, so it is not known where they were.",
};
const COMPLETE = ["in_file", "beyond_filter", "beyond_file", "guard", "redacted"];

const shellWord = (word) => /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\\''") + "'";
function commands(process) {
  const { core, debug } = process;
  const packed = core.file.endsWith(".zst");
  const file = packed ? core.file.slice(0, -4) : core.file;
  const unpack = packed ? "zstd -d " + shellWord(core.file) + " && " : "";
  const script = (end) => debug && debug.scripts.find((name) => name.endsWith(end));
  const program = process.exe === null ? "PROGRAM" : process.exe;
  const safe = (name) => shellWord(name.startsWith("-") ? "./" + name : name);
  return [
    ["gdb", unpack + (script(".gdb") ? "gdb -x " + safe(script(".gdb")) : "gdb " + safe(program) + " " + safe(file))],
    ["lldb", unpack + (script(".lldb") ? "lldb -s " + safe(script(".lldb")) : "lldb " + safe(program) + " -c " + safe(file))],
  ];
}
function present(process, tab, tid, went) {
  const TABS = [
    ["stacks", plural(process.threads.length, "thread"), () => stacks(process, tid)],
    ["memory", plural(process.vmas.rows.length, "mapping"), () => memory(process)],
    process.files ? ["files", plural(process.files.reduce((n, one) => n + one.files.length, 0), "file"), () => openFiles(process)] : null,
    ["images", plural(process.images.length, "ELF image"), () => images(process)],
    ["more", "More", () => more(process)],
  ].filter(Boolean);
  const chosen = TABS.some(([name]) => name === tab) ? tab : "stacks";
  const number = process.nspid && process.nspid.length > 1 ? " (" + process.nspid.slice(1).join(", ") + " in its namespaces)" : "";
  const body = make("div", { class: "body", id: "body", role: "tabpanel", "aria-labelledby": "tab-" + chosen });
  const view = make("article", {},
    make("div", { class: "title" }, make("h2", { tabindex: "-1" }, process.comm + ", PID " + process.pid + number),
      make("a", { class: "close", href: elsewhere("processes"), "aria-label": "Close", title: "Close (Esc)" }, "\u2715")),
    make("p", { class: "soft clip", title: process.command_line }, process.command_line || process.exe),
    missing(process),
    definitions(commands(process).map(([name, command]) => [name, copied(command, "the command for " + name)])),
    make("div", { role: "tablist", "aria-label": "Of this process" }, TABS.map(([name, words]) => make("button", {
      type: "button", role: "tab", id: "tab-" + name, "aria-selected": String(name === chosen), "aria-controls": "body",
      tabindex: name === chosen ? "0" : "-1", onclick: () => went(name),
    }, words))), body);
  return { view, fill: () => body.append(...[TABS.find(([name]) => name === chosen)[2]()].flat().filter(Boolean)) };
}
function missing(process) {
  const { core } = process;
  if (core.complete) return make("p", { class: "good" }, "The core is complete" + (core.size ? ", " + amount(core.size) : "") + ".");
  const reasons = Object.entries(core.absent).filter(([reason]) => !COMPLETE.includes(reason));
  return make("details", { class: "missing", open: true },
    make("summary", { class: "bad" }, core.missing ? plural(core.missing, "page") + " missing" : "The core is incomplete"),
    make("ul", {}, reasons.map(([reason, n]) => make("li", {}, plural(n, "page") + ": " + (ADVICE[reason] || reason.replaceAll("_", " "))))),
    [...core.warnings, ...core.threads_left_out.map((t) => "Thread " + t.tid + " (" + t.comm + ") is left out: " + t.reason)].map(bad));
}

const USUAL = ["CFI", "registers", "ORC", "switch frame"];
const place = (one) => one && one.file ? one.file + (one.line ? ":" + one.line : "") : "";
function frameRows(frame) {
  const inner = (frame.inlined || []).map((one) => [one.function || "?", "inlined", place(one)]);
  const name = frame.function ? frame.function + (frame.offset ? "+" + frame.offset : "") : frame.address;
  const how = [frame.signal_trampoline ? "signal trampoline" : "", frame.found_by && !USUAL.includes(frame.found_by) ? "found by " + frame.found_by : ""];
  const where = place(frame.source) || frame.file || frame.module || "";
  return [...inner, [name, how.filter(Boolean).join(", "), where]];
}
function frameList(frames, kind) {
  return make("ol", { class: "frames " + kind, start: "0" }, frames.flatMap(frameRows).map(([name, how, where]) =>
    make("li", {}, mono(name), how ? make("em", {}, how) : null, where ? make("span", { class: "where", title: where }, where.slice(where.lastIndexOf("/") + 1)) : null)));
}
function waitsFor(thread) {
  const { since, wait } = thread;
  const asleep = since === null || since === undefined ? null : "asleep for " + Number(since).toFixed(3) + " s";
  return [asleep, wait ? "waits for " + wait.what : null].filter(Boolean).join(", ") || null;
}
function innermost(thread) {
  const named = thread.frames.find((frame) => frame.function);
  return named ? named.function : thread.system_call ? thread.system_call.name : null;
}
function callOf(thread) {
  const call = thread.system_call;
  if (!call) return null;
  const name = call.name || "system call " + call.number;
  return name + "(" + call.arguments.map((one) => one.name ? one.name + "=" + one.text : one.text).join(", ") + ")";
}

function thread(one) {
  const call = callOf(one), asleep = waitsFor(one), inKernel = one.kernel ? one.kernel.frames : [];
  return [
    asleep ? make("p", { class: "asleep" }, asleep) : null,
    inKernel.length ? [make("h4", {}, "In the kernel"), frameList(inKernel, "kernel")] : null,
    one.kernel && one.kernel.end ? make("p", { class: "soft" }, "The kernel\u2019s stack ends here: " + one.kernel.end) : null,
    call ? [make("h4", {}, "System call"), mono(call)] : null,
    one.frames.length ? [inKernel.length || call ? make("h4", {}, "In the program") : null, frameList(one.frames, "user")] : null,
    one.end ? make("p", { class: "soft" }, "The stack ends here: " + one.end) : null,
    one.registers ? make("p", { class: "soft" }, "Registers: " + one.registers) : null,
    one.wanted && one.wanted.length ? make("p", { class: "soft" }, "These files would tell more: " +
      one.wanted.map((file) => (file.path || "?") + (file.build_id ? " (build ID " + file.build_id + ")" : "")).join(", ")
      + ". gdb takes them from below VMCORE2CORE_SYSROOT=DIR, and this page has what they tell with --sysroot DIR.") : null,
  ].flat().filter(Boolean);
}
// Threads with the same frames, such as a pool's, are shown together.
function stacks(process, tid) {
  const groups = new Map();
  for (const one of process.threads) {
    const key = JSON.stringify([one.frames, one.kernel && one.kernel.frames.map((f) => f.address), one.end]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(one);
  }
  const many = [...groups.values()].sort((a, b) => b.some((t) => t.tid === tid) - a.some((t) => t.tid === tid));
  return some(many.map((equals, number) => () => threadGroup(equals, tid, number < 8)), 100);
}
function threadGroup(equals, tid, opened) {
  const first = equals.find((one) => one.tid === tid) || equals[0];
  const name = innermost(first);
  const who = equals.length === 1 ? first.tid + " " + first.comm + ", " + state(first.state)
    : plural(equals.length, "thread") + ": " + equals.slice(0, 8).map((one) => one.tid + " " + one.comm).join(", ") + (equals.length > 8 ? " and " + (equals.length - 8) + " more" : "");
  return make("details", { open: opened || equals.some((one) => one.tid === tid), class: equals.some((one) => one.tid === tid) ? "asked" : null },
    make("summary", {}, who, name ? [" ", mono(name)] : null), thread(first),
    equals.length > 1 ? some(equals.filter((one) => waitsFor(one)).map((one) => () => make("p", { class: "soft" }, one.tid + " " + one.comm + ": " + waitsFor(one))), 50) : null);
}

function memory(process) {
  const { names, permissions, rows } = process.vmas;
  const total = {};
  for (const [, , , , , pages] of rows) for (const [name, n] of Object.entries(pages)) total[name] = (total[name] || 0) + n;
  const box = make("div", { class: "memory" });
  const input = make("input", { type: "search", placeholder: "name, or an address such as 0x7f12345678", "aria-label": "Search mappings", autocomplete: "off", spellcheck: "false" });
  const count = make("span", { class: "soft", "aria-live": "polite" });
  box.append(bar(total, true), legend(total), make("p", { class: "tools" }, input, count));
  const view = new Rows(box, "Mappings", MAPPING_COLUMNS, ([start, end, permission, name, inCore, pages]) => [
    mono(start + "-" + end), mono(permissions[permission]), amount(Number(BigInt("0x" + end) - BigInt("0x" + start))), bar(pages, false),
    make("bdi", { title: names[name] }, names[name] || soft("anonymous")), IN_CORE[inCore],
  ]);
  function look() {
    const word = input.value.trim().toLowerCase();
    const address = /^0x[0-9a-f]{1,16}$/.test(word) ? BigInt(word) : null;
    const found = !word ? rows : rows.filter(([start, end, , name]) => address !== null
      ? BigInt("0x" + start) <= address && address < BigInt("0x" + end) : (names[name] || "anonymous").toLowerCase().includes(word));
    count.textContent = found.length === rows.length ? plural(rows.length, "mapping") : found.length + " of " + plural(rows.length, "mapping");
    view.show(found);
  }
  input.addEventListener("input", look);
  look();
  return box;
}
const IN_CORE = ["no", "yes", "first page"];
const MAPPING_COLUMNS = [
  { name: "range", title: "Addresses" }, { name: "permissions", title: "" }, { name: "size", title: "Size", kind: "number" },
  { name: "pages", title: "Pages" }, { name: "mapping", title: "Mapping" }, { name: "incore", title: "In the core" },
];

function openFiles(process) {
  return process.files.flatMap((one) => [
    definitions([["Working directory", one.cwd], ["Root", one.root], one.tid === process.pid ? ["", null] : ["Thread", String(one.tid)]]),
    ...one.warnings.map(bad),
    plainTable("Open files", "files", ["fd", "Access", "Position", "Type", "What"], one.files.map((file) =>
      [String(file.fd), file.access || "path", file.pos === null ? "?" : String(BigInt(file.pos)), file.kind, whatOf(file)])),
  ]);
}
function whatOf(file) {
  const { socket } = file;
  const parts = [make("div", {}, file.path || "?")];
  if (socket) parts.push([socket.netid, socket.state, socket.local, socket.peer].filter(Boolean).join(" ")
    + (socket.recv_q || socket.send_q ? ", receive queue " + socket.recv_q + ", send queue " + socket.send_q : ""));
  const details = Object.entries(file.details).map(([name, value]) => name + " " + (typeof value === "object" ? JSON.stringify(value) : value));
  if (details.length) parts.push(details.join(", "));
  if (file.other_ends) parts.push(make("span", {}, "other end: ", otherEnds(file.other_ends, file.other_ends_count)));
  if (file.problem) parts.push(make("span", { class: "bad" }, file.problem));
  return make("div", {}, parts.map((part) => typeof part === "string" ? make("div", { class: "soft" }, part) : part));
}
function otherEnds(ends, count) {
  if (!ends.length) return "no process has it";
  const named = ends.slice(0, 8), more = (count || ends.length) - named.length;
  return [...named.flatMap((one, at) => [at ? ", " : null, task(one.pid, one.comm), " fd " + one.fd]), more > 0 ? " and " + more + " more" : null];
}
function images(process) {
  return plainTable("ELF images", "images", ["Image", "Mapped at", "Build ID"], process.images.map((image) =>
    [image.name || "", mono(image.start), image.build_id ? mono(image.build_id) : "not known"]));
}
function more(process) {
  const { core, debug } = process;
  return [definitions([
    ["Core", core.file + ", " + amount(core.size) + (core.file_size === core.size ? "" : " (" + amount(core.file_size) + " as it is)")],
    ["Contents", core.complete ? "complete" : plural(core.missing, "page") + " missing"],
    ["Program", known(process.exe)], ["Command line", known(process.command_line)],
    ["State", state(process.state)], ["UID", known(process.uid)], ["GID", known(process.gid)], ["Resident", amount(process.rss_kib * 1024)],
    ["Control groups", process.cgroups === null ? "not known" : process.cgroups.join(", ")],
    ["Containers", process.containers.length ? process.containers.join(", ") : "none"],
    debug && debug.sysroot ? ["Files beside it", debug.sysroot + (debug.program ? debug.program : "")] : ["", null],
  ]), ...[...core.notices, ...(debug ? debug.notices : [])].map((sentence) => make("p", { class: "soft" }, sentence))];
}
