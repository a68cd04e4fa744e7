"use strict";
// Several subjects: each folder becomes a draft, picture by picture; a zip is read by the studio.

const PICTURE = /\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|avif)$/i;
const MASK = /^(.+)[._-]mask$/i;
const CARD = /^subject\.(ya?ml)(\.txt)?$/i;
const MOST = 16;
const list = document.getElementById("drafts");

const stem = (name) => name.replace(/\.[^.]*$/, "").toLowerCase();
const newId = () => [...crypto.getRandomValues(new Uint8Array(8))].map((one) => one.toString(16).padStart(2, "0")).join("");

// Folder's path -> its files. What starts with a dot is the system's.
function byFolder(files) {
  const folders = new Map();
  for (const [path, file] of files) {
    const parts = path.split("/");
    if (parts.some((one) => one.startsWith(".") || one.startsWith("__"))) continue;
    const folder = parts.slice(0, -1).join("/") || stem(file.name);
    folders.set(folder, [...(folders.get(folder) ?? []), file]);
  }
  return folders;
}

async function bringFolder(path, files) {
  const name = path.split("/").at(-1);
  const pictures = files.filter((one) => PICTURE.test(one.name)).sort((a, b) => (a.name < b.name ? -1 : 1));
  if (!pictures.length) return 0;
  const stems = new Set(pictures.map((one) => stem(one.name)));
  const isMask = (one) => stems.has((MASK.exec(stem(one.name)) ?? [])[1]);
  const masks = new Map(pictures.filter(isMask).map((one) => [MASK.exec(stem(one.name))[1], one]));
  const shown = pictures.filter((one) => !isMask(one));
  const draft = newId();
  const begin = `/add-subject/${draft}/begin?name=${encodeURIComponent(name.slice(0, 200))}`;
  const card = files.find((one) => CARD.test(one.name));
  try {
    await send(begin, card ?? "", "application/octet-stream");
  } catch (error) {
    say(`${name}: ${error.message}`);
    await send(begin, "", "application/octet-stream");
  }
  if (shown.length > MOST) say(`${name}: ${shown.length} pictures, the first ${MOST} are used`);
  let came = 0;
  for (const file of shown.slice(0, MOST)) {
    try {
      const kept = await sendPicture(draft, file);
      came += 1;
      const mask = masks.get(stem(file.name));
      if (mask) await send(`${kept.edit}/mask-file?name=${encodeURIComponent(mask.name.slice(0, 500))}`, mask, "application/octet-stream");
    } catch (error) { say(`${name}: ${error.message}`); }
  }
  if (!came) {
    await send(`/add-subject/${draft}/discard`);
    say(`${name}: left out, it has no picture that can be used`);
  }
  return came ? 1 : 0;
}

// A page that is loaded anew shows all drafts; what was wrong is to be read first.
function finish(count) {
  const wrong = messages.querySelectorAll(".bad").length;
  if (count && !wrong) location.reload();
  else if (count) {
    const again = element("button", { type: "button", textContent: `Show the ${count} that came` });
    again.addEventListener("click", () => location.reload());
    messages.append(element("p", { className: "act-row" }, again));
    document.getElementById("none")?.remove();
  } else if (!wrong) say("No folder with pictures was found; expected one folder of pictures per subject");
}

// Folders that are subjects: not those whose pictures lie beside folders of pictures.
function subjectsAmong(folders) {
  const full = folders.filter(([, files]) => files.some((one) => PICTURE.test(one.name)));
  return full.filter(([path, files]) => {
    const within = full.filter(([other]) => other.startsWith(`${path}/`)).length;
    if (within < 2) return true;
    const stray = files.filter((one) => PICTURE.test(one.name)).map((one) => one.name);
    say(`${path}: ${stray.slice(0, 3).join(", ")}${stray.length > 3 ? ` and ${stray.length - 3} more` : ""}: ignored, beside the subjects' folders; each subject has a folder of its own`);
    return false;
  });
}

async function bringFiles(files) {
  const folders = subjectsAmong([...byFolder(files)]);
  const waiting = say("Reading", true);
  let count = 0;
  for (const [at, [path, own]] of folders.entries()) {
    waiting.textContent = `Reading ${path.split("/").at(-1)}, ${at + 1} of ${folders.length}`;
    try { count += await bringFolder(path, own); } catch (error) { say(error.message); }
  }
  waiting.remove();
  finish(count);
}

async function bringZip(file) {
  const waiting = say(`${file.name}: sending and reading`, true);
  try {
    const told = await send(`/add-subject/several/zip?name=${encodeURIComponent(file.name.slice(0, 500))}`, file, "application/zip");
    told.messages.forEach((one) => say(one));
    waiting.remove();
    finish(told.drafts);
  } catch (error) {
    waiting.remove();
    say(error.message);
  }
}

// Files below what was dropped, as [path, file].
async function below(entry, path = "") {
  const here = path ? `${path}/${entry.name}` : entry.name;
  if (entry.isFile) return [[here, await new Promise((take, fail) => entry.file(take, fail))]];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const part = await new Promise((take, fail) => reader.readEntries(take, fail));
    if (!part.length) return found;
    for (const one of part) found.push(...await below(one, here));
  }
}

dropZone(document.getElementById("drop"), async (carried) => {
  const entries = [...carried.items].map((one) => one.webkitGetAsEntry?.()).filter(Boolean);
  const files = [...carried.files];
  const zips = files.filter((one) => /\.zip$/i.test(one.name));
  for (const one of zips) await bringZip(one);
  const rest = [];
  for (const one of entries) if (!/\.zip$/i.test(one.name)) rest.push(...await below(one));
  if (rest.length) await bringFiles(rest);
});

document.getElementById("folder").addEventListener("change", (event) => {
  const files = [...event.target.files].map((one) => [one.webkitRelativePath || one.name, one]);
  event.target.value = "";
  messages.replaceChildren();
  bringFiles(files);
});

document.getElementById("zip").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  messages.replaceChildren();
  if (file) bringZip(file);
});

const valuesOf = (card) => Object.fromEntries(new FormData(card.querySelector("form")));

async function note(card) {
  await send(`/add-subject/${card.dataset.draft}/note`, JSON.stringify(typed(valuesOf(card))));
}

function tell(card, text, good = false) {
  const place = card.querySelector(".said-here");
  place.textContent = text;
  place.className = `said-here message ${good ? "good" : "bad"}`;
}

async function saveAll(event) {
  const button = event.target;
  messages.replaceChildren();
  button.disabled = true;
  let saved = 0, wrong = 0;
  for (const card of [...list.children].filter((one) => !one.dataset.saved)) {
    const values = valuesOf(card);
    const body = JSON.stringify({ ...typed(values), replace: values.replace === "on" });
    try {
      const done = await send(`/add-subject/${card.dataset.draft}/save`, body);
      card.dataset.saved = "yes";
      card.querySelectorAll("input, select, button").forEach((one) => { one.disabled = true; });
      tell(card, `${done.subject} is ${done.unchanged ? "as it was" : "registered"}`, true);
      saved += 1;
    } catch (error) {
      tell(card, error.message);
      wrong += 1;
    }
  }
  say(`${saved} saved${wrong ? `, ${wrong} not: what is wrong stands at each` : ""}`, !wrong);
  document.getElementById("done").hidden = !saved;
  button.disabled = !wrong;
}

if (list) {
  document.getElementById("save").addEventListener("click", saveAll);
  list.addEventListener("change", (event) => {
    const card = event.target.closest("li");
    if (event.target.name !== "replace") note(card).catch((error) => tell(card, error.message));
  });
  list.addEventListener("submit", (event) => event.preventDefault());
  list.addEventListener("click", async (event) => {
    if (!("discard" in event.target.dataset)) return;
    const card = event.target.closest("li");
    try {
      await send(`/add-subject/${card.dataset.draft}/discard`);
      card.remove();
    } catch (error) { tell(card, error.message); }
  });
  document.getElementById("all").addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = typed({ ...Object.fromEntries(new FormData(event.target)), name: "", class_name: "" }).licence;
    for (const card of list.children) {
      const values = valuesOf(card);
      if (card.dataset.saved || typed(values).licence) continue;
      const choice = card.querySelector("select[name=licence_choice]");
      choice.value = chosen;
      if (choice.value !== chosen) card.querySelector("input[name=licence]").value = chosen;
      note(card).catch((error) => tell(card, error.message));
    }
  });
}
