"use strict";
// Flip between winner and loser: click toggles, Space held shows the loser, the slider blends.
(() => {
  const box = document.querySelector("[data-flip]");
  if (!box) return;
  const canvas = box.querySelector(".canvas");
  const [win, lose, over] = ["win", "lose", "over"].map((name) => canvas.querySelector(`.${name}`));
  const which = box.querySelector(".which");
  const blend = box.querySelector("[data-blend]");
  const shows = [...document.querySelectorAll("[data-show]")];
  let showsLoser = false;
  let map = "";

  const draw = () => {
    const part = Number(blend.value) / 100;
    over.hidden = !map;
    lose.hidden = !(showsLoser || part > 0);
    lose.style.opacity = showsLoser ? "1" : String(part);
    const words = map ? shows.find((one) => one.dataset.show === map).textContent.trim()
      : showsLoser ? "Loser" : part > 0 && part < 1 ? `Loser at ${blend.value} %` : part === 1 ? "Loser" : "Winner";
    if (which.textContent !== words) which.textContent = words;
    box.dataset.side = map ? "over" : showsLoser || part === 1 ? "lose" : part > 0 ? "blend" : "win";
    canvas.setAttribute("aria-pressed", String(showsLoser));
    canvas.setAttribute("aria-label", `Shown: ${words}. Flip.`);
    for (const one of shows) one.setAttribute("aria-pressed", String(one.dataset.show === map));
  };
  const show = (name) => {
    map = map === name ? "" : name;
    const button = shows.find((one) => one.dataset.show === map);
    if (map) {
      over.src = button.dataset.src;
      over.alt = button.textContent.trim();
    }
    draw();
  };
  const flip = (to) => {
    if (showsLoser === to && !map) return;
    showsLoser = to;
    map = "";
    draw();
  };

  canvas.addEventListener("click", () => flip(!showsLoser));
  blend.addEventListener("input", () => { showsLoser = false; map = ""; draw(); });
  for (const one of shows) one.addEventListener("click", () => show(one.dataset.show));

  // Space is held: it must neither scroll nor press the button that has the focus.
  const isButton = (target) => target instanceof HTMLElement && target !== canvas && target.closest("button, a, summary");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || studio.typing(event.target)) return;
    if (event.code === "Space" && !isButton(event.target)) {
      event.preventDefault();
      if (!event.repeat) flip(true);
    }
    const named = { d: "difference", p: "prior", m: "masks" }[event.key.toLowerCase()];
    if (named) show(named);
  });
  document.addEventListener("keyup", (event) => {
    if (event.code === "Space" && !studio.typing(event.target) && !isButton(event.target)) {
      event.preventDefault();
      flip(false);
    }
  });
  draw();
})();
