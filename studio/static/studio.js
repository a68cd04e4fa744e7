"use strict";
// What every page has: keys for links, and small helpers. Pages work without it, but for what moves.
(() => {
  const typing = (target) => target instanceof HTMLElement &&
    (target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName));

  // <a data-key="ArrowRight">: the key follows the link, unless somebody is typing or moving a slider.
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (typing(event.target)) return;
    const link = [...document.querySelectorAll("a[data-key]")].find((one) => one.dataset.key === event.key);
    if (!link) return;
    event.preventDefault();
    link.click();
  });

  // On a phone the navigation is a strip: the page's own entry comes into view.
  const strip = document.querySelector(".bar nav ul");
  const here = strip && strip.querySelector("[aria-current]");
  if (here) strip.scrollLeft = here.offsetLeft - strip.offsetLeft - strip.clientWidth / 2 + here.offsetWidth / 2;

  // Pictures of the next page, one after another once this page is there: turning it then is quick.
  const grid = document.querySelector("[data-ahead]");
  if (grid) window.addEventListener("load", async () => {
    for (const address of grid.dataset.ahead.split(" ").filter(Boolean)) {
      await new Promise((resolve) => {
        const image = new Image();
        image.onload = image.onerror = resolve;
        image.src = address;
      });
    }
  });

  // A control that acts as soon as it is changed.
  for (const one of document.querySelectorAll("[data-submit]")) {
    one.addEventListener("change", () => one.form.requestSubmit());
  }

  // <button data-toggle="class" data-of="selector">
  for (const one of document.querySelectorAll("button[data-toggle]")) {
    one.addEventListener("click", () => {
      const on = document.querySelector(one.dataset.of).classList.toggle(one.dataset.toggle);
      one.setAttribute("aria-pressed", String(on));
    });
  }

  const csrf = document.querySelector('meta[name="csrf"]');
  window.studio = {
    typing,
    // A change that the page asks for: the guard wants the token in a header.
    async post(address, body) {
      const answer = await fetch(address, {
        method: "POST", credentials: "same-origin", body,
        headers: { "X-CSRF-Token": csrf ? csrf.content : "", Accept: "application/json" },
      });
      const told = await answer.json().catch(() => ({ error: answer.statusText }));
      if (!answer.ok) throw new Error(told.error || answer.statusText);
      return told;
    },
    async get(address) {
      const answer = await fetch(address, { credentials: "same-origin", headers: { Accept: "application/json" } });
      const told = await answer.json().catch(() => ({ error: answer.statusText }));
      if (!answer.ok) throw new Error(told.error || answer.statusText);
      return told;
    },
  };
})();
