// The machine: why it died, what its CPUs ran, who was blocked, which threads had equal stacks, what is not known.

const head = JSON.parse(find("#head").textContent);

function heading() {
  const { kernel, dump, crash } = head;
  const facts = [
    kernel.crash_time === null ? null : "crashed " + utc(kernel.crash_time), crash === null ? "the kernel did not panic" : null,
    "Linux " + [kernel.release, kernel.machine].join(" "), dump.files.map((file) => file.name).filter((name) => name !== find("h1").textContent).join(", "),
  ];
  find("#facts").textContent = facts.filter(Boolean).join(" \u00b7 ");
  const why = kernel.panic !== null ? "Kernel panic: " + kernel.panic : crash && crash.oops;
  if (why) find("#panic").append(make("p", { class: "panic" }, why));
}
function card(title, ...children) {
  return make("section", { class: "card" }, make("h2", {}, title), ...children);
}
const open = (pid, tid) => "#pid=" + pid + (tid === undefined || tid === pid ? "" : "&tid=" + tid);
const there = (pid) => table && table.pid.includes(pid);
function task(pid, comm, tid) {
  const words = known(comm) + " " + (tid === undefined ? pid : tid);
  return there(pid) ? make("a", { href: open(pid, tid) }, words) : words;
}

function machine() {
  return make("div", { class: "machine" },
    notFinished(), died(), cpus(), deadlocks(), blocked(), together(), lacking(), messages(), about());
}
function notFinished() {
  return head.finished ? null : bad("This run is not finished, and processes are missing: --resume continues it.");
}
function died() {
  const crash = head.crash;
  if (!crash) return null;
  const who = crash.pid === null || crash.pid === undefined ? null : [task(crash.process || crash.pid, crash.comm, crash.pid)];
  return card("Why the kernel died",
    crash.oops && head.kernel.panic !== null ? make("p", { class: "panic" }, crash.oops) : null,
    definitions([["CPU", crash.cpu === null ? null : String(crash.cpu)], ["It ran", who]]),
    crash.trace.length ? make("ol", { class: "trace" }, crash.trace.map((line) =>
      make("li", {}, make("code", { class: line.startsWith("?") ? "guess" : null }, line)))) : null);
}
function cpus() {
  if (!head.cpus || !head.cpus.length) return null;
  const rows = head.cpus.map((one) => () => make("li", {}, mono("CPU " + known(one.cpu)), " ",
    one.pid === 0 ? soft("idle") : one.pid === null ? soft("not known")
      : task(one.process || one.pid, one.comm, one.pid),
    one.process ? soft(" of " + known(one.process_comm) + " " + one.process) : null,
    one.user_mode === null || one.pid === 0 ? null : soft(one.user_mode ? ", in user mode" : ", in the kernel")));
  return card(plural(rows.length, "CPU"), make("ul", { class: "plain" }, some(rows, 32)));
}
function deadlocks() {
  if (!head.deadlocks || !head.deadlocks.length) return null;
  const owner = new Map();
  table.threads.forEach((threads, i) => threads.forEach(([tid, name]) => owner.set(tid, [i, table.texts[name]])));
  return card("Threads that wait for each other", ...head.deadlocks.map((ring) => make("p", {},
    [...ring, ring[0]].flatMap((tid, at) => [at ? " waits for " : null,
      owner.has(tid) ? task(table.pid[owner.get(tid)[0]], owner.get(tid)[1], tid) : String(tid)]))));
}
function blocked() {
  if (!head.blocked || !head.blocked.length) return null;
  const rows = head.blocked.map((one) => () => make("details", {},
    make("summary", {}, task(one.pid, one.comm, one.tid), " ", mono(one.frames.filter((name) => !SCHEDULER.test(name)).slice(0, 4).join(" \u2190 "))),
    make("ol", { class: "trace", start: "0" }, one.frames.map((name) => make("li", {}, mono(name))))));
  return card(plural(rows.length, "task") + " in uninterruptible sleep", some(rows, 20));
}
function together() {
  const groups = equalStacks();
  if (!groups.length) return null;
  return card("Threads with equal stacks", some(groups.map(([stack, who]) => () => equal(stack, who)), 10));
}
function equal(stack, who) {
  const names = table.stacks[stack].flat().map((number) => table.functions[number]);
  const { sleeps, named } = telling(table.stacks[stack]);
  const rows = [...new Set(who.map(([i]) => i))];
  return make("details", {},
    make("summary", {}, make("b", {}, plural(who.length, "thread")), " of ",
      rows.length > 1 ? plural(rows.length, "process") : table.comm[rows[0]] + " " + table.pid[rows[0]], " ",
      mono([sleeps, ...named].filter(Boolean).slice(0, 4).join(" \u2190 "))),
    make("ol", { class: "trace", start: "0" }, names.map((name) => make("li", {}, mono(name)))),
    make("p", {}, rows.slice(0, 24).flatMap((i) => [make("a", { href: open(table.pid[i]) }, table.comm[i] + " " + table.pid[i]), " "]),
      make("a", { href: "#view=processes&stack=" + stack }, "show in the table")));
}
function lacking() {
  const incomplete = table.complete.filter((is) => !is).length;
  const left = head.left_out;
  const sentences = [
    ...head.warnings.map(bad),
    ...table.errors.length ? [make("details", { open: table.errors.length < 8 }, make("summary", { class: "bad" }, plural(table.errors.length, "process") + " not converted"),
      some(table.errors.map((error) => () => make("p", {}, error.error))))] : [],
    incomplete ? make("p", {}, make("a", { href: "#view=processes&show=incomplete" }, plural(incomplete, "process") + (incomplete === 1 ? " is" : " are") + " incomplete")) : null,
    left && left.length ? make("p", {}, "Left out when the dump was written (makedumpfile -d " + head.dump.dump_level + "): " + left.join(", ") + ".") : null,
    ...(head.notices || []).map((sentence) => make("p", { class: "soft" }, sentence)),
    ...(head.unknown || []).map((sentence) => make("p", { class: "soft" }, "Not known: " + sentence)),
  ].filter(Boolean);
  return sentences.length ? card("What is missing or not known", ...sentences) : null;
}
function messages() {
  if (!head.messages || !head.messages.length) return null;
  return make("details", { class: "card", open: true }, make("summary", {}, make("h2", {}, "The kernel\u2019s last messages")),
    make("pre", { tabindex: "0", class: "messages" }, head.messages.join("\n")));
}
function about() {
  const { kernel, dump } = head;
  return card("The dump", definitions([
    ["Machine", known(kernel.nodename)], ["Kernel", [kernel.release, kernel.machine].join(", ")], ["Build", known(kernel.version)],
    ["Build ID", kernel.build_id === null ? null : mono(kernel.build_id)],
    ["Crash time", kernel.crash_time === null ? "not known" : utc(kernel.crash_time)],
    ["Dump", dump.files.map((file) => file.name + " (" + amount(file.size) + ")").join(", ") + ", " + dump.format],
    ["Dump level", dump.dump_level === null ? "not known" : String(dump.dump_level)],
    ["Written by", head.tool + ", " + (head.finished || "not finished")],
  ]));
}
