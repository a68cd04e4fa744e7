"use strict";
// The mask of a picture: brush, eraser, and clicks at what belongs to the subject and what does not.

const editor = document.getElementById("editor");
const csrf = document.querySelector("meta[name=csrf]").content;
const canvas = document.getElementById("canvas");
const pen = canvas.getContext("2d");
const messages = document.getElementById("messages");
const size = document.getElementById("size");
const away = document.getElementById("away");
const overlay = document.getElementById("marks");
const pointed = document.getElementById("pointed");
const MOST_UNDO = 30;

let picture, mask, painter, history = [], last = null, changed = false;
// What was clicked, the mask before the first of these points, and what the brush did since.
let points = [], base = null, strokes = [];
let cursor = null, looking = null, turn = Promise.resolve();

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
  drawMarks(overlay, mask.width, mask.height, points, cursor);
  const count = countInWords(points);
  if (pointed.textContent !== count) pointed.textContent = count;
}

function pixels() { return painter.getImageData(0, 0, mask.width, mask.height); }

function remember() {
  history.push({ before: pixels(), points, base, strokes });
  if (history.length > MOST_UNDO) history.shift();
  changed = true;
}

function undo() {
  if (stopLooking() || !history.length) return;
  const one = history.pop();
  painter.putImageData(one.before, 0, 0);
  ({ points, base, strokes } = one);
  messages.replaceChildren();
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

function paint({ from, to, colour, width }) {
  painter.strokeStyle = colour;
  painter.lineWidth = width;
  painter.lineCap = painter.lineJoin = "round";
  painter.beginPath();
  painter.moveTo(from.x, from.y);
  painter.lineTo(to.x + 0.01, to.y);
  painter.stroke();
}

function stroke(from, to) {
  const one = { from, to, colour: tool() === "erase" ? "#000" : "#fff", width: Number(size.value) };
  paint(one);
  if (points.length) strokes = [...strokes, one];
  show();
}

// A point that is still being looked at is given up; false where there is none.
function stopLooking() {
  if (!looking) return false;
  looking.control.abort();
  looking = null;
  messages.replaceChildren();
  return true;
}

// Points are asked one after the other, each with all that came before it. `turn` tells whether the
// last one was answered or given up.
function point(at, belongs) {
  if (points.length + (looking ? looking.waiting : 0) >= Number(editor.dataset.most)) {
    say(`There are ${editor.dataset.most} points, and no more are taken; undo some`);
    return;
  }
  const spot = {
    x: Math.min(mask.width - 1, Math.max(0, Math.floor(at.x))),
    y: Math.min(mask.height - 1, Math.max(0, Math.floor(at.y))),
    belongs,
  };
  const own = looking || { control: new AbortController(), waiting: 0 };
  const { signal } = own.control;
  looking = own;
  own.waiting += 1;
  turn = turn.then(async () => {
    try {
      if (!signal.aborted) await take(spot, signal);
      return true;
    } catch (error) {
      if (!signal.aborted) say(error.message);
      return signal.aborted;
    } finally {
      own.waiting -= 1;
      if (own === looking && !own.waiting) looking = null;
    }
  });
}

async function take(spot, signal) {
  const asked = [...points, spot];
  let found = null;
  if (asked.some((one) => one.belongs)) {
    say("Looking; the first look takes a while, as the segmenter is loaded", true);
    found = await maskOf(`${editor.dataset.edit}/click`, csrf, asked, signal);
    if (signal.aborted) return;
    messages.replaceChildren();
  } else {
    say("Now click what belongs to the subject", true);
  }
  remember();
  if (!points.length) base = pixels();
  points = asked;
  if (found) {
    painter.drawImage(found, 0, 0);
    strokes.forEach(paint);
  }
  show();
}

function forgetPoints() {
  points = [];
  strokes = [];
  base = null;
}

// Back to the mask before the first point; what the brush did since stays.
function dropPoints() {
  if (stopLooking() || !points.length) return;
  remember();
  painter.putImageData(base, 0, 0);
  strokes.forEach(paint);
  forgetPoints();
  messages.replaceChildren();
  show();
}

function setAway(on) {
  away.setAttribute("aria-pressed", String(on));
  if (on) choose("click");
}

function isAway() { return away.getAttribute("aria-pressed") === "true"; }

canvas.addEventListener("pointerdown", (event) => {
  const at = place(event);
  if (tool() === "click") {
    if (event.button === 1) return;
    cursor = null;
    point(at, !(isAway() || event.button === 2 || event.shiftKey || event.ctrlKey));
    return;
  }
  messages.replaceChildren();
  canvas.setPointerCapture(event.pointerId);
  stopLooking();
  remember();
  last = at;
  stroke(at, at);
});
canvas.addEventListener("contextmenu", (event) => { if (tool() === "click") event.preventDefault(); });
canvas.addEventListener("pointermove", (event) => {
  if (last === null) return;
  const at = place(event);
  stroke(last, at);
  last = at;
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { last = null; });

// Without a mouse: arrows move a cross over the picture, Enter sets a point there.
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (tool() !== "click" || event.ctrlKey || event.metaKey || event.altKey) return;
  const middle = { x: Math.floor(mask.width / 2), y: Math.floor(mask.height / 2) };
  if (event.key in STEPS) {
    const far = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(mask.width, mask.height) / 48));
    const [dx, dy] = STEPS[event.key];
    const from = cursor || middle;
    cursor = {
      x: Math.min(mask.width - 1, Math.max(0, from.x + dx * far)),
      y: Math.min(mask.height - 1, Math.max(0, from.y + dy * far)),
    };
  } else if (event.key === "Enter") {
    cursor = cursor || middle;
    point(cursor, !(isAway() || event.shiftKey));
  } else return;
  event.preventDefault();
  show();
});
canvas.addEventListener("blur", () => { cursor = null; show(); });

function every(change) {
  stopLooking();
  remember();
  forgetPoints();
  const all = pixels();
  for (let i = 0; i < all.data.length; i += 4) all.data.fill(change(all.data[i] > 127) ? 255 : 0, i, i + 3);
  painter.putImageData(all, 0, 0);
  show();
}

async function asFound() {
  const image = await load(`${editor.dataset.edit}/found.png`);
  stopLooking();
  remember();
  forgetPoints();
  painter.drawImage(image, 0, 0);
  show();
}

async function keep() {
  if (looking && !(await turn)) return;
  const blob = await mask.convertToBlob({ type: "image/png" });
  const headers = { "x-csrf-token": csrf, accept: "application/json", "content-type": "image/png" };
  const answer = await fetch(`${editor.dataset.edit}/draw`, { method: "POST", headers, body: blob });
  if (!answer.ok) throw await refusal(answer);
  changed = false;
  location.href = editor.dataset.back;
}

function resize(by) {
  size.value = Number(size.value) + by;
  document.getElementById("size-out").value = size.value;
}

document.getElementById("undo").addEventListener("click", undo);
away.addEventListener("click", () => setAway(!isAway()));
document.getElementById("drop").addEventListener("click", dropPoints);
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
  else if (event.key === "n") setAway(!isAway());
  else if (event.key === "Escape") dropPoints();
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
