"use strict";
// A run that is not finished: ask how far it is, and load the charts again when there is more.
(() => {
  const box = document.getElementById("run");
  if (!box || box.dataset.finished === "true") return;
  const { address } = box.dataset;
  const state = document.getElementById("run-state");
  const every = 3000;

  const look = async () => {
    try {
      if (document.hidden) return true;
      const now = await studio.get(`${address}/state`);
      const words = now.finished ? "finished" : `step ${now.steps}${now.wanted ? ` of ${now.wanted}` : ""}`;
      if (state.textContent !== words) state.textContent = words;
      if (now.stamp !== box.dataset.stamp) {
        const answer = await fetch(`${address}/charts`, { credentials: "same-origin" });
        if (!answer.ok) throw new Error(answer.statusText);
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        box.replaceChildren(...page.body.childNodes);
        box.dataset.stamp = now.stamp;
      }
      return !now.finished;
    } catch (error) {
      state.textContent = `cannot be asked: ${error.message}`;
      return true;
    }
  };
  const again = async () => {
    if (await look()) setTimeout(again, every);
  };
  setTimeout(again, every);
})();
