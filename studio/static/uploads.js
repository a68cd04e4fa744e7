"use strict";
// Add a subject: each picture is sent by itself, so that one that is refused costs no other.

const form = document.getElementById("subject");
const here = `/add-subject/${form.dataset.draft}`;
const csrf = document.querySelector("meta[name=csrf]").content;
const list = document.getElementById("pictures");
const messages = document.getElementById("messages");
const drop = document.getElementById("drop");

function say(text, good = false) {
  const one = document.createElement("p");
  one.className = `message ${good ? "good" : "bad"}`;
  one.textContent = text;
  messages.append(one);
  return one;
}

async function ask(path, body, type = "application/json") {
  const headers = { "x-csrf-token": csrf, accept: "application/json", "content-type": type };
  const answer = await fetch(here + path, { method: "POST", headers, body });
  const text = await answer.text();
  let values = {};
  try { values = JSON.parse(text); } catch { values = { error: text.slice(0, 500) }; }
  if (!answer.ok) throw new Error(values.error || `the studio answered ${answer.status}`);
  return values;
}

function fields() {
  const values = Object.fromEntries(new FormData(form));
  return JSON.stringify({
    name: values.name, class_name: values.class_name, licence: values.licence,
    replace: form.elements.replace.checked,
  });
}

function element(tag, properties = {}, ...children) {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
}

function card(one) {
  const link = element("a", { className: "masked", href: one.edit },
    element("img", { src: one.view, alt: one.name }));
  const over = element("img", { className: "over", alt: "" });
  over.dataset.mask = one.mask;
  link.append(over);
  const remove = element("button", { type: "button", className: "quiet", textContent: "Remove" });
  remove.dataset.remove = "";
  const made = element("li", { className: "card" }, link,
    element("p", { className: "name", textContent: one.name }),
    element("p", { className: "note", textContent: `${one.width} × ${one.height}` }),
    ...one.notes.map((said) => element("p", { className: "note warn", textContent: said })),
    element("p", { className: "act-row" },
      element("a", { className: "button", href: one.edit, textContent: "Mend the mask" }), remove));
  made.dataset.picture = one.id;
  list.append(made);
  tint(over);
}

function tint(over) {
  const mask = new Image();
  mask.onload = () => {
    const canvas = element("canvas", { width: mask.width, height: mask.height });
    const pen = canvas.getContext("2d");
    pen.drawImage(mask, 0, 0);
    const pixels = pen.getImageData(0, 0, mask.width, mask.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const inside = pixels.data[i] > 127;
      // What is left out goes dark, as it goes white in the dataset.
      pixels.data.set(inside ? [0, 0, 0, 0] : [20, 20, 40, 190], i);
    }
    pen.putImageData(pixels, 0, 0);
    over.replaceWith(canvas);
  };
  mask.src = `${over.dataset.mask}?${Date.now()}`;
}

async function bring(files) {
  for (const file of files) {
    const waiting = say(`${file.name}: sending`, true);
    try {
      const limit = 50 * 1024 * 1024;
      if (file.size > limit) throw new Error(`${file.name}: larger than 50 MiB; scale it down, 2000 pixels a side are plenty`);
      if (!file.size) throw new Error(`${file.name}: the file is empty (0 bytes); replace or remove it`);
      await ask("/note", fields());
      card(await ask(`/pictures?name=${encodeURIComponent(file.name.slice(0, 500))}`, file, "application/octet-stream"));
    } catch (error) {
      say(error.message);
    }
    waiting.remove();
  }
  suggest(files);
}

function suggest(files) {
  const name = form.elements.name;
  if (name.value || !files.length) return;
  name.value = files[0].name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^[^A-Za-z0-9]+|-+$/g, "").slice(0, 64);
}

for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  messages.replaceChildren();
  bring([...event.dataTransfer.files]);
});
for (const id of ["files", "camera"]) {
  document.getElementById(id).addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    messages.replaceChildren();
    bring(files);
  });
}

form.addEventListener("change", (event) => {
  if (["name", "class_name", "licence"].includes(event.target.name)) {
    ask("/note", fields()).catch((error) => say(error.message));
  }
});

list.addEventListener("click", async (event) => {
  if (!("remove" in event.target.dataset)) return;
  const one = event.target.closest("li");
  try {
    await ask(`/${one.dataset.picture}/remove`);
    one.remove();
  } catch (error) { say(error.message); }
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  messages.replaceChildren();
  const button = document.getElementById("save");
  button.disabled = true;
  try {
    const done = await ask("/save", fields());
    const notes = done.notes.length ? ` Note: ${done.notes.join("; ")}` : "";
    document.getElementById("saved-text").textContent =
      `${done.subject} is ${done.unchanged ? "as it was" : "registered"}; the root has ${done.subjects} subjects.${notes}`;
    form.hidden = true;
    const saved = document.getElementById("saved");
    saved.hidden = false;
    saved.focus();
  } catch (error) {
    say(error.message).scrollIntoView({ block: "center" });
  }
  button.disabled = false;
});

document.getElementById("discard").addEventListener("click", async () => {
  await ask("/discard");
  location.href = "/add-subject";
});

document.querySelectorAll("img.over").forEach(tint);
