"use strict";
// What the pages of unsaved subjects share: requests, messages, cards, masks drawn over pictures.

const csrf = document.querySelector("meta[name=csrf]").content;
const messages = document.getElementById("messages");
const LARGEST_PICTURE = 50 * 1024 * 1024;

function say(text, good = false) {
  const one = document.createElement("p");
  one.className = `message ${good ? "good" : "bad"}`;
  one.textContent = text;
  messages.append(one);
  return one;
}

async function send(path, body, type = "application/json") {
  const headers = { "x-csrf-token": csrf, accept: "application/json", "content-type": type };
  const answer = await fetch(path, { method: "POST", headers, body });
  const text = await answer.text();
  let values = {};
  try { values = JSON.parse(text); } catch { values = { error: text.slice(0, 500) }; }
  if (!answer.ok) throw new Error(values.error || `the studio answered ${answer.status}`);
  return values;
}

function element(tag, properties = {}, ...children) {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
}

// What was typed of a subject: `values` are a form's fields. Own words go before the choice.
function typed(values) {
  return {
    name: values.name, class_name: values.class_name,
    licence: values.licence.trim() || values.licence_choice,
    source: values.source,
    person: values.person === "on",
    consent: values.person === "on" ? values.consent : "",
  };
}

function checkPicture(file) {
  if (file.size > LARGEST_PICTURE) throw new Error(`${file.name}: larger than 50 MiB; scale it down, 2000 pixels a side are plenty`);
  if (!file.size) throw new Error(`${file.name}: the file is empty (0 bytes); replace or remove it`);
}

function sendPicture(draft, file) {
  checkPicture(file);
  return send(`/add-subject/${draft}/pictures?name=${encodeURIComponent(file.name.slice(0, 500))}`, file, "application/octet-stream");
}

// The mask over its picture: what is left out goes dark, as it goes white in the dataset.
function tint(over) {
  const mask = new Image();
  mask.onload = () => {
    const canvas = element("canvas", { width: mask.width, height: mask.height });
    const pen = canvas.getContext("2d");
    pen.drawImage(mask, 0, 0);
    const pixels = pen.getImageData(0, 0, mask.width, mask.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const inside = pixels.data[i] > 127;
      pixels.data.set(inside ? [0, 0, 0, 0] : [20, 20, 40, 190], i);
    }
    pen.putImageData(pixels, 0, 0);
    over.replaceWith(canvas);
  };
  mask.src = `${over.dataset.mask}?${Date.now()}`;
}

// A place to drop files at; `take` gets what was dropped.
function dropZone(zone, take) {
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    messages.replaceChildren();
    take(event.dataTransfer);
  });
}

document.querySelectorAll("img.over").forEach(tint);
// Choosing a licence takes back what was typed instead.
document.addEventListener("change", (event) => {
  if (event.target.name !== "licence_choice" || !event.target.value) return;
  event.target.closest("p").querySelector("input[name=licence]").value = "";
}, true);
