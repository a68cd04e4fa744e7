"use strict";
// The mask of a picture: brush, eraser, and a click that takes what the segmenter sees.

const editor = document.getElementById("editor");
const csrf = document.querySelector("meta[name=csrf]").content;
const canvas = document.getElementById("canvas");
const pen = canvas.getContext("2d");
const messages = document.getElementById("messages");
const size = document.getElementById("size");
const MOST_UNDO = 30;

let picture, mask, painter, history = [], last = null, changed = false;

function load(path) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture did not load; load the page again"));
    image.src = path;
  });
}

function say(text, good = false) {
  const one = document.createElement("p");
  one.className = `message ${good ? "good" : "bad"}`;
  one.textContent = text;
  messages.replaceChildren(one);
}

function show() {
  pen.drawImage(picture, 0, 0);
  const shown = pen.getImageData(0, 0, canvas.width, canvas.height);
  const marks = painter.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < marks.length; i += 4) {
    const pixel = shown.data;
    if (marks[i] > 127) continue;
    const grey = 0.15 * (pixel[i] + pixel[i + 1] + pixel[i + 2]);
    pixel[i] = pixel[i + 1] = pixel[i + 2] = grey + 25;
  }
  pen.putImageData(shown, 0, 0);
}

function remember() {
  history.push(painter.getImageData(0, 0, mask.width, mask.height));
  if (history.length > MOST_UNDO) history.shift();
  changed = true;
}

function undo() {
  if (history.length) painter.putImageData(history.pop(), 0, 0);
  show();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: (event.clientX - box.left) * canvas.width / box.width,
    y: (event.clientY - box.top) * canvas.height / box.height,
  };
}

function tool() { return editor.querySelector("input[name=tool]:checked").value; }

function choose(name) { editor.querySelector(`input[name=tool][value=${name}]`).checked = true; }

function stroke(from, to) {
  painter.strokeStyle = painter.fillStyle = tool() === "erase" ? "#000" : "#fff";
  painter.lineWidth = Number(size.value);
  painter.lineCap = painter.lineJoin = "round";
  painter.beginPath();
  painter.moveTo(from.x, from.y);
  painter.lineTo(to.x + 0.01, to.y);
  painter.stroke();
  show();
}

async function take(at, away) {
  const headers = { "x-csrf-token": csrf, accept: "application/json", "content-type": "application/json" };
  const spot = {
    x: Math.min(mask.width - 1, Math.max(0, Math.floor(at.x))),
    y: Math.min(mask.height - 1, Math.max(0, Math.floor(at.y))),
  };
  say("Looking; the first look takes a while, as the segmenter is loaded", true);
  const answer = await fetch(`${editor.dataset.edit}/click`, { method: "POST", headers, body: JSON.stringify(spot) });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || `the studio answered ${answer.status}`);
  }
  const found = await createImageBitmap(await answer.blob());
  const layer = new OffscreenCanvas(mask.width, mask.height).getContext("2d");
  layer.drawImage(found, 0, 0);
  const theirs = layer.getImageData(0, 0, mask.width, mask.height).data;
  remember();
  const mine = painter.getImageData(0, 0, mask.width, mask.height);
  for (let i = 0; i < theirs.length; i += 4) {
    if (theirs[i] > 127) mine.data.fill(away ? 0 : 255, i, i + 3);
  }
  painter.putImageData(mine, 0, 0);
  messages.replaceChildren();
  show();
}

canvas.addEventListener("pointerdown", (event) => {
  messages.replaceChildren();
  const at = place(event);
  if (tool() === "click") {
    take(at, event.shiftKey).catch((error) => say(error.message));
    return;
  }
  canvas.setPointerCapture(event.pointerId);
  remember();
  last = at;
  stroke(at, at);
});
canvas.addEventListener("pointermove", (event) => {
  if (last === null) return;
  const at = place(event);
  stroke(last, at);
  last = at;
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { last = null; });

function every(change) {
  remember();
  const pixels = painter.getImageData(0, 0, mask.width, mask.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.fill(change(pixels.data[i] > 127) ? 255 : 0, i, i + 3);
  painter.putImageData(pixels, 0, 0);
  show();
}

async function asFound() {
  const image = await load(`${editor.dataset.edit}/found.png`);
  remember();
  painter.drawImage(image, 0, 0);
  show();
}

async function keep() {
  const blob = await mask.convertToBlob({ type: "image/png" });
  const headers = { "x-csrf-token": csrf, accept: "application/json", "content-type": "image/png" };
  const answer = await fetch(`${editor.dataset.edit}/draw`, { method: "POST", headers, body: blob });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || `the studio answered ${answer.status}`);
  }
  changed = false;
  location.href = editor.dataset.back;
}

function resize(by) {
  size.value = Number(size.value) + by;
  document.getElementById("size-out").value = size.value;
}

document.getElementById("undo").addEventListener("click", undo);
document.getElementById("invert").addEventListener("click", () => every((inside) => !inside));
document.getElementById("clear").addEventListener("click", () => every(() => false));
document.getElementById("found").addEventListener("click", () => asFound().catch((error) => say(error.message)));
document.getElementById("keep").addEventListener("click", () => keep().catch((error) => say(error.message)));
size.addEventListener("input", () => resize(0));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const tools = { b: "add", e: "erase", c: "click" };
  if (event.key in tools) choose(tools[event.key]);
  else if (event.key === "[") resize(-4);
  else if (event.key === "]") resize(4);
  else if (event.key === "z") undo();
});
window.addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });

(async () => {
  picture = await load(editor.dataset.view);
  const start = await load(`${editor.dataset.mask}?${Date.now()}`);
  canvas.width = picture.width;
  canvas.height = picture.height;
  mask = new OffscreenCanvas(picture.width, picture.height);
  painter = mask.getContext("2d", { willReadFrequently: true });
  painter.drawImage(start, 0, 0);
  size.max = Math.max(20, Math.round(Math.max(mask.width, mask.height) / 3));
  size.value = Math.max(2, Math.round(Math.max(mask.width, mask.height) / 16));
  resize(0);
  show();
  editor.dataset.ready = "";
})().catch((error) => say(error.message));
