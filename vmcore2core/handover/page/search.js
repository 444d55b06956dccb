// The processes: searching and sorting them. `table` has a list for each column, see page_data.py.

let table = null;
let haystack = [];
const TEXTS = ["comm", "command", "exe", "states", "container", "cgroup", "waits"];

function prepare(data) {
  table = data;
  const { texts } = table;
  for (const name of TEXTS) table[name] = table[name].map((number) => texts[number]);
  haystack = table.pid.map((pid, i) => [
    pid, ...table.nspid[i], table.comm[i], table.waits[i], table.command[i], table.exe[i], table.container[i], table.cgroup[i],
    ...table.threads[i].map(([tid, name]) => tid + " " + texts[name]),
  ].join("\n").toLowerCase());
  table.search = table.functions.map((name) => name.toLowerCase());
}
// Which stacks have a function with these letters: there are far fewer of them than threads.
function stacksWith(word) {
  const hit = table.search.map((name) => name.includes(word));
  return table.stacks.map((parts) => parts.flat().find((number) => hit[number]));
}
function matching(words, show, only) {
  const tests = words.map((word) => {
    const stacks = stacksWith(word);
    return (i) => haystack[i].includes(word) || table.threads[i].some(([, , stack]) => stacks[stack] !== undefined);
  });
  const shown = SHOWN[show] ? SHOWN[show][1] : () => true;
  const found = [];
  for (let i = 0; i < table.pid.length; i++)
    if (shown(i) && (only === null || table.threads[i].some(([, , stack]) => stack === only)) && tests.every((test) => test(i)))
      found.push(i);
  return found;
}
const SCHEDULER = /^(__|io_|preempt_)?schedule/;
// The functions that tell the most, innermost first: where in the kernel a thread sleeps, without the scheduler that it
// calls for that, and the program's that have names. What has none is an address, as page_data.py says.
function telling(stack) {
  const [kernel, program] = stack.map((part) => part.map((number) => table.functions[number]));
  const sleeps = kernel.find((name) => !SCHEDULER.test(name));
  const named = program.filter((name) => !name.startsWith("0x"));
  return { sleeps, named: named.length ? named : program };
}
// The function to show for a process: the one that the search names, else the program's innermost.
function functionOf(i, words) {
  const stacks = table.threads[i].map(([, , stack]) => table.stacks[stack]);
  for (const word of words)
    for (const stack of stacks) {
      const hit = stack.flat().find((number) => table.search[number].includes(word));
      if (hit !== undefined) return table.functions[hit];
    }
  const told = stacks.map(telling);
  const first = told.find(({ named }) => named.length && !named[0].startsWith("0x")) || told.find(({ sleeps }) => sleeps) || told[0];
  return first ? first.named.find((name) => !name.startsWith("0x")) || first.sleeps || first.named[0] || "" : "";
}
const SHOWN = {
  "": ["all", () => true],
  incomplete: ["incomplete", (i) => !table.complete[i]],
  complete: ["complete", (i) => table.complete[i]],
  blocked: ["with a thread in uninterruptible sleep", (i) => table.states[i].includes("D")],
  running: ["with a thread running or runnable", (i) => table.states[i].includes("R")],
  contained: ["in a container", (i) => table.container[i]],
};
const group = (i) => table.container[i] ? table.container[i].slice(0, 12) : table.cgroup[i];
const contents = (i) => table.complete[i] ? "complete" : table.missing[i] ? plural(table.missing[i], "page") + " missing" : "incomplete";
const COLUMNS = [
  { name: "pid", title: "PID", kind: "number", of: (i) => table.pid[i] },
  { name: "comm", title: "Name", of: (i) => table.comm[i] },
  { name: "state", title: "S", of: (i) => table.states[i] },
  { name: "command", title: "Command", of: (i) => table.command[i] || table.exe[i] },
  { name: "in", title: "In", of: (i) => functionOf(i, []) },
  { name: "contents", title: "Contents", of: (i) => table.complete[i] ? -1 : table.missing[i] },
  { name: "rss", title: "RSS", kind: "number", of: (i) => table.rss[i], shown: amount },
  { name: "threads", title: "Threads", kind: "number", of: (i) => table.threads[i].length },
  { name: "group", title: "Container or group", of: group },
  { name: "waits", title: "Waits for", of: (i) => table.waits[i] },
  { name: "uid", title: "UID", kind: "number", of: (i) => table.uid[i] === null ? -1 : table.uid[i], shown: (n) => n < 0 ? "?" : String(n) },
  { name: "core", title: "Core", kind: "number", of: (i) => table.size[i], shown: amount },
].map((column) => ({ ...column, sort: true }));

function sort(found, number, direction, words) {
  const { of } = COLUMNS[number];
  const keys = new Map(found.map((i) => {
    const key = of(i);
    return [i, typeof key === "string" ? key.toLowerCase() : key];
  }));
  // A number means exactly this process or thread.
  const exact = new Set(words.length === 1 && /^\d+$/.test(words[0])
    ? found.filter((i) => table.threads[i].some(([tid]) => String(tid) === words[0])) : []);
  return found.sort((a, b) => exact.has(b) - exact.has(a)
    || direction * (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0) || table.pid[a] - table.pid[b]);
}
// Threads with equal stacks, most first: [number of the stack, [[row, tid]]].
function equalStacks() {
  const found = new Map();
  table.threads.forEach((threads, i) => threads.forEach(([tid, , stack]) => {
    if (!table.stacks[stack].flat().length) return;
    if (!found.has(stack)) found.set(stack, []);
    found.get(stack).push([i, tid]);
  }));
  return [...found].filter(([, who]) => who.length > 1).sort((a, b) => b[1].length - a[1].length);
}
