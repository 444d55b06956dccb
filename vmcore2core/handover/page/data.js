// The data in files beside the page. No browser lets a page from disk read files, but the page may run them as scripts:
// each file calls loaded() with its name and JSON. The page's policy lets only these files and this script run.

const KEPT = 16;
const files = new Map();
const policy = (window.trustedTypes || { createPolicy: (_name, rules) => rules }).createPolicy("data", {
  createScriptURL: (name) => {
    if (!/^index\.data\/[a-z0-9]+\.js$/.test(name)) throw new TypeError(name);
    return name;
  },
});

function loaded(name, json) {
  const file = files.get(name);
  if (file) file.take(JSON.parse(json));
}
function load(name) {
  const there = files.get(name);
  if (there) return there.promise;
  const file = {};
  const path = "index.data/" + name + ".js";
  const script = make("script", {});
  file.promise = new Promise((resolve, reject) => {
    file.take = resolve;
    script.onload = () => { script.remove(); reject(new Error(path + " has nothing that this page can show.")); };
    script.onerror = () => {
      script.remove();
      files.delete(name);
      reject(new Error(path + " is not beside this page: copy the whole directory, or unpack all of it."));
    };
  });
  files.set(name, file);
  if (files.size > KEPT) files.delete([...files.keys()].find((one) => one !== name && one !== "processes"));
  script.src = policy.createScriptURL(path);
  document.head.append(script);
  return file.promise;
}
