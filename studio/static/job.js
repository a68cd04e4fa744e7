"use strict";
// A job's page: asks what is new until the job has ended.

const job = document.getElementById("job");
const EVERY = 1000;

function phases(rows) {
  document.getElementById("phases").replaceChildren(...rows.map((one) => {
    const line = document.createElement("p"), label = document.createElement("label");
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.value = one.share;
    const left = one.left ? `, about ${one.left} left` : "";
    label.append(`${one.phase}: ${one.done} of ${one.total} ${one.figures}${left}`, bar);
    line.append(label);
    return line;
  }));
}

function lines(id, texts, className = "") {
  const list = document.getElementById(id);
  if (list.children.length === texts.length) return;
  list.replaceChildren(...texts.map((one) => {
    const line = document.createElement("li");
    line.className = className;
    line.textContent = one;
    return line;
  }));
}

// Lines and pictures are put in place of the old ones only where they changed.
function known(told) {
  lines("printed", told.printed);
  lines("warnings", told.warnings, "note");
  const shown = document.getElementById("pictures");
  if ([...shown.children].map((one) => one.getAttribute("src")).join() === told.pictures.join()) return;
  document.getElementById("so-far").hidden = !told.pictures.length;
  shown.replaceChildren(...told.pictures.map((address, at) => {
    const image = new Image();
    image.src = address;
    image.alt = `Picture ${at + 1} of those that were painted`;
    return image;
  }));
}

async function look() {
  const answer = await fetch(`/jobs/${job.dataset.id}/state`, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(`the studio answered ${answer.status}`);
  const told = await answer.json();
  const state = document.getElementById("state");
  state.textContent = state.dataset.state = told.state;
  phases(told.progress);
  const words = document.getElementById("words");
  if (words.textContent !== told.words) words.textContent = told.words;
  words.hidden = !told.words;
  known(told);
  const log = document.getElementById("log");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 20;
  log.textContent = told.log || "Nothing yet.";
  if (atEnd) log.scrollTop = log.scrollHeight;
  if (told.state === "stopping") document.querySelector("#stop button").textContent = "Stop at once";
  const result = document.getElementById("result");
  if (told.page) {
    result.href = told.page;
    result.hidden = false;
  }
  if (told.active) return true;
  const summary = document.getElementById("summary");
  summary.textContent = told.summary;
  summary.hidden = !told.summary;
  document.getElementById("stop").hidden = true;
  // What an export has written is listed by the page itself.
  if (told.files) location.reload();
  return false;
}

async function follow() {
  let more = true;
  while (more) {
    await new Promise((wake) => setTimeout(wake, EVERY));
    // The studio may be starting anew: the job goes on without it.
    more = await look().catch(() => true);
  }
}

const log = document.getElementById("log");
log.scrollTop = log.scrollHeight;
if (job.dataset.active) follow();
