"use strict";
// Add a subject: each picture is sent by itself, so that one that is refused costs no other.

const form = document.getElementById("subject");
const here = `/add-subject/${form.dataset.draft}`;
const list = document.getElementById("pictures");
const drop = document.getElementById("drop");

const ask = (path, body) => send(here + path, body);

function fields() {
  const values = typed(Object.fromEntries(new FormData(form)));
  return JSON.stringify({ ...values, replace: form.elements.replace.checked });
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

async function bring(files) {
  for (const file of files) {
    const waiting = say(`${file.name}: sending`, true);
    try {
      checkPicture(file);
      await ask("/note", fields());
      card(await sendPicture(form.dataset.draft, file));
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

dropZone(drop, (carried) => bring([...carried.files]));
for (const id of ["files", "camera"]) {
  document.getElementById(id).addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    messages.replaceChildren();
    bring(files);
  });
}

form.addEventListener("change", (event) => {
  if (["name", "class_name", "licence", "licence_choice", "source", "person", "consent"].includes(event.target.name)) {
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
