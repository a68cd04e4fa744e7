"use strict";
// Points at what belongs to a subject and at what does not: their marks over the picture, how many
// there are in words, and the mask that the segmenter makes of them. Used by mask.js.

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const one = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  return one;
}

// A disc with a plus or a minus: no one needs to tell colours apart.
function mark(point, r) {
  const group = shape("g", { class: point.belongs ? "belongs" : "outside" });
  const [x, y] = [point.x + 0.5, point.y + 0.5];
  const sign = `M${x - r / 2} ${y}h${r}` + (point.belongs ? `M${x} ${y - r / 2}v${r}` : "");
  group.append(shape("circle", { cx: x, cy: y, r }), shape("path", { d: sign }));
  return group;
}

// Where Enter would set a point.
function cross(cursor, r) {
  const [x, y] = [cursor.x + 0.5, cursor.y + 0.5];
  const lines = [[1, 0], [-1, 0], [0, 1], [0, -1]].map(([dx, dy]) =>
    `M${x + dx * r * 0.4} ${y + dy * r * 0.4}L${x + dx * r * 2} ${y + dy * r * 2}`);
  const d = lines.join("");
  const group = shape("g", { class: "cursor" });
  group.append(shape("path", { d, class: "under" }), shape("path", { d }));
  return group;
}

function drawMarks(overlay, width, height, points, cursor) {
  const r = Math.max(width, height) / 48;
  overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
  overlay.replaceChildren(...points.map((point) => mark(point, r)), ...(cursor ? [cross(cursor, r)] : []));
}

function countInWords(points) {
  const inside = points.filter((point) => point.belongs).length;
  const away = points.length - inside;
  if (!points.length) return "No points";
  const some = inside === 1 ? "1 point belongs" : `${inside} points belong`;
  return away ? `${some}, ${away} ${away === 1 ? "does" : "do"} not` : some;
}

// What came back instead of what was asked for, in the studio's words.
async function refusal(answer) {
  const said = await answer.json().catch(() => ({}));
  return new Error(said.error || `the studio answered ${answer.status}`);
}

async function maskOf(path, csrf, points, signal) {
  const headers = { "x-csrf-token": csrf, accept: "application/json", "content-type": "application/json" };
  const body = JSON.stringify({
    points: points.map((point) => [point.x, point.y]),
    labels: points.map((point) => (point.belongs ? 1 : 0)),
  });
  const answer = await fetch(path, { method: "POST", headers, body, signal });
  if (!answer.ok) throw await refusal(answer);
  return createImageBitmap(await answer.blob());
}
