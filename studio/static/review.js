"use strict";
// Review by keyboard. Pictures of the next pairs are fetched ahead.

const review = document.getElementById("review");
const AHEAD = 4;

function start() {
  const csrf = document.querySelector("meta[name=csrf]").content;
  const blind = review.dataset.mode === "blind";
  const asked = new URLSearchParams(location.search);
  asked.set("reviewer", review.dataset.reviewer);
  const byId = (id) => document.getElementById(id);
  const messages = byId("messages");
  let matching = 0;
  let pairs = [], at = 0, shown = null, flipped = false, busy = false, chosen = false;
  const decided = []; // ids of pairs, the newest last: what undo goes back through
  const ahead = new Map();

  function say(text, good = false) {
    const one = document.createElement("p");
    one.className = `message ${good ? "good" : "bad"}`;
    one.textContent = text;
    messages.replaceChildren(...(text ? [one] : []));
  }

  async function get(path) {
    const answer = await fetch(`${path}?${asked}`, { headers: { accept: "application/json" } });
    const values = await answer.json();
    if (!answer.ok) throw new Error(values.error);
    return values;
  }

  function terms(list, rows) {
    byId(list).replaceChildren(...rows.flatMap(([name, value]) => {
      const term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = name;
      said.textContent = value;
      return [term, said];
    }));
  }

  const figure = (value) => value === null ? "not known yet" : value.toFixed(2).replace("-", "−");

  function progress(told) {
    byId("progress").max = Math.max(1, told.count.total);
    byId("progress").value = told.count.decided;
    byId("count").textContent = `${told.count.decided} of ${told.count.total} decided by you`;
    const one = told.agreement;
    const counts = [["Decisions", one.decisions], ["Pairs judged", one.pairs]];
    terms("agreement", blind ? counts : [
      ...counts,
      ["By two or more", one.several],
      ["Same decision", one.agreement === null ? "not known yet" : `${Math.round(100 * one.agreement)} %`],
      ["Krippendorff’s α", figure(one.alpha)],
      ["Prefer the scorers’ winner", one.scorers.share === null ? "not known yet" : `${Math.round(100 * one.scorers.share)} %`],
    ]);
  }

  function draw() {
    const sides = flipped ? ["right", "left"] : ["left", "right"];
    const titles = blind ? { left: "Left", right: "Right" } : { left: "Winner", right: "Loser" };
    ["left", "right"].forEach((slot, i) => {
      const side = sides[i];
      const image = byId(slot);
      image.src = shown[side];
      image.alt = `${titles[side]}: ${shown.prompt}`;
      image.className = blind ? "" : { left: "winner", right: "loser" }[side];
      byId(`${slot}-title`).textContent = titles[side];
    });
    document.querySelectorAll("[data-decide]").forEach((one) => {
      one.setAttribute("aria-pressed", String(one.dataset.decide === shown.mine));
    });
  }

  function describe() {
    byId("prompt").textContent = shown.prompt;
    byId("refs").replaceChildren(...shown.subjects.map((one) => {
      const made = document.createElement("figure"), image = new Image();
      const title = document.createElement("figcaption");
      image.src = one.picture;
      image.alt = `reference of ${one.name}`;
      title.textContent = `${one.name} (${one.class_name})`;
      made.append(image, title);
      return made;
    }));
    if (blind) return;
    terms("scores", [
      ["Source", `${shown.source}, ${shown.mode}`],
      ["Margin", figure(shown.margin)],
      ["Identity", `${shown.win_identity.map(figure).join(", ")} against ${shown.lose_identity.map(figure).join(", ")}`],
      ["Why", shown.reason],
    ]);
    byId("history").replaceChildren(...shown.history.map((one) => {
      const line = document.createElement("p");
      line.className = "note";
      line.textContent = `${one.when.slice(0, 16).replace("T", " ")} ${one.reviewer}: ${one.decision}${one.reason ? ` (${one.reason})` : ""}`;
      return line;
    }));
  }

  async function show() {
    if (!pairs.length) {
      shown = null;
      byId("pictures").hidden = true;
      say("Nothing is left to review here. Choose another filter above, or build: the next version honours your decisions.", true);
      return;
    }
    at = (at + pairs.length) % pairs.length;
    byId("pictures").hidden = false;
    flipped = false;
    const id = pairs[at].id;
    shown = await (ahead.get(id) ?? get(`/review/pairs/${id}`));
    ahead.clear();
    byId("reason").value = "";
    draw();
    describe();
    review.dataset.pair = shown.id;
    for (const next of pairs.slice(at + 1, at + 1 + AHEAD)) {
      const coming = get(`/review/pairs/${next.id}`);
      coming.then((one) => { for (const side of ["left", "right"]) new Image().src = one[side]; }, () => ahead.delete(next.id));
      ahead.set(next.id, coming);
    }
  }

  // Undo is about the pair that the reviewer went to, else about the last decision: deciding has
  // moved on from it.
  const undone = () => (chosen && shown?.mine ? shown.id : decided.at(-1) ?? shown?.id);

  async function post(path, values) {
    const answer = await fetch(`${path}?${asked}`, {
      method: "POST",
      headers: { "x-csrf-token": csrf, accept: "application/json", "content-type": "application/json" },
      body: JSON.stringify({ reviewer: review.dataset.reviewer, reason: byId("reason").value, ...values }),
    });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    return told;
  }

  // All pairs of the filter in one act: undo takes back the whole of it.
  async function decideAll(decision) {
    if (busy) return;
    busy = true;
    try {
      const told = await post("/review/decide-all", { decision, matching });
      decided.push(told.pair);
      chosen = false;
      await load();
      say(`${told.decided} ${decision}ed. Undo takes all of them back.`, true);
    } catch (error) { say(error.message); }
    busy = false;
  }

  async function decide(decision) {
    const pair = decision === "undo" ? undone() : shown?.id;
    if (busy || pair === undefined) return;
    busy = true;
    try {
      const told = await post("/review/decide", { pair, decision, blind });
      progress(told);
      say("");
      chosen = false;
      if (decision === "undo" && told.decided > 1) {
        decided.splice(decided.lastIndexOf(pair), 1);
        await load();
        say(`${told.decided} decisions are taken back.`, true);
      } else if (decision === "undo") await back(pair);
      else {
        decided.push(pair);
        await step(1);
      }
    } catch (error) { say(error.message); }
    busy = false;
  }

  async function back(pair) {
    const last = decided.lastIndexOf(pair);
    if (last >= 0) decided.splice(last, 1);
    const place = pairs.findIndex((one) => one.id === pair);
    if (place < 0) pairs.splice(at, 0, { id: pair });
    else at = place;
    ahead.delete(pair);
    await show();
  }

  async function walk(by) {
    chosen = true;
    await step(by).catch((error) => say(error.message));
  }

  async function step(by) {
    if (at + by >= pairs.length && by > 0) {
      // At the end the queue is asked again: what was decided is no longer in it.
      await load();
      return;
    }
    at += by;
    await show();
  }

  function flip() {
    if (shown === null) return;
    flipped = !flipped;
    draw();
  }

  async function load() {
    const told = await get("/review/queue");
    pairs = told.pairs;
    matching = told.matching;
    if (byId("bulk")) {
      byId("bulk-count").textContent = `${matching} ${matching === 1 ? "pair is" : "pairs are"} chosen`;
      byId("bulk").querySelectorAll("button").forEach((one) => { one.disabled = !matching; });
    }
    at = 0;
    progress(told);
    await show();
  }

  const keys = blind
    ? { 1: "left", 2: "right", 0: "neither", u: "undo" }
    : { a: "accept", r: "reject", s: "swap", u: "undo" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key in keys) decide(keys[event.key]);
    else if (event.key === "ArrowRight") walk(1);
    else if (event.key === "ArrowLeft") walk(-1);
    else if (event.key === " " && !event.target.matches("button, a")) { event.preventDefault(); flip(); }
  });
  review.addEventListener("click", (event) => {
    const one = event.target.closest("button");
    if (!one) return;
    if (one.dataset.all) decideAll(one.dataset.all);
    else if (one.dataset.decide) decide(one.dataset.decide);
    else if (one.dataset.step) walk(Number(one.dataset.step));
    else if (one.id === "flip") flip();
    review.focus();
  });
  load().then(() => { review.dataset.ready = ""; }, (error) => say(error.message));
}

if (review) start();
