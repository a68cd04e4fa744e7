"use strict";
// The slider over noise levels: each map is one picture with its frames side by side.
(() => {
  const box = document.getElementById("focus");
  if (!box) return;
  const { address, query } = box.dataset;
  const state = document.getElementById("focus-state");
  const slider = document.getElementById("sigma");
  const canvases = [...box.querySelectorAll("canvas[data-map]")];
  const strips = new Map();
  let told = null;
  let branch = "winner";
  let phase = "base";

  const load = (name) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a map could not be loaded"));
    image.src = `${address}/${name}${query}`;
  });

  const stripsOf = async () => {
    const wanted = canvases.map((one) => `${phase}/${branch}/${one.dataset.map}`);
    await Promise.all(wanted.filter((name) => !strips.has(name)).map(async (name) => strips.set(name, await load(name))));
  };

  const draw = () => {
    const at = Number(slider.value);
    const numbers = told.phases[phase][branch];
    for (const canvas of canvases) {
      const strip = strips.get(`${phase}/${branch}/${canvas.dataset.map}`);
      if (!strip) continue;
      const width = strip.naturalWidth / told.sigmas.length;
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== strip.naturalHeight) canvas.height = strip.naturalHeight;
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(strip, at * width, 0, width, strip.naturalHeight, 0, 0, width, strip.naturalHeight);
    }
    const sigma = told.sigmas[at].toFixed(2);
    document.getElementById("sigma-is").textContent = `σ ${sigma}`;
    slider.setAttribute("aria-valuetext", `sigma ${sigma}`);
    document.getElementById("alignment").textContent = numbers.alignment[at].toFixed(3);
    document.getElementById("gate").textContent = numbers.gate[at] > 0 ? "on" : "off";
    document.getElementById("structure").textContent = `${Math.round(100 * numbers.structure[at])} %`;
    document.getElementById("side").textContent = branch === "winner" ? "Winner" : "Loser";
    for (const one of box.querySelectorAll("img[data-side]")) one.hidden = one.dataset.side !== branch;
    box.dataset.shown = `${phase} ${branch} ${at}`;
  };

  const press = (selector, chosen, key) => {
    for (const one of box.querySelectorAll(selector)) one.setAttribute("aria-pressed", String(one.dataset[key] === chosen));
  };
  const refresh = async () => {
    press("[data-branch]", branch, "branch");
    press("[data-phase]", phase, "phase");
    try {
      await stripsOf();
      draw();
    } catch (error) {
      fail(error);
    }
  };
  const fail = (error) => {
    state.hidden = false;
    state.className = "said";
    state.textContent = error.message;
  };

  const begin = async () => {
    try {
      await studio.post(`${address}${query}`);
      for (let wait = 150; ; wait = Math.min(wait * 1.4, 1500)) {
        told = await studio.get(`${address}${query}`);
        if (told.state === "done") break;
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
      slider.max = String(told.sigmas.length - 1);
      slider.value = String(Math.floor(told.sigmas.length / 2));
      document.getElementById("top").textContent = told.top.toFixed(2);
      document.getElementById("sigmas").replaceChildren(...told.sigmas.map((_, at) => {
        const option = document.createElement("option");
        option.value = String(at);
        return option;
      }));
      await refresh();
      state.hidden = true;
      document.getElementById("focus-tools").hidden = false;
    } catch (error) {
      fail(error);
    }
  };

  slider.addEventListener("input", draw);
  for (const one of box.querySelectorAll("[data-branch]")) one.addEventListener("click", () => { branch = one.dataset.branch; refresh(); });
  for (const one of box.querySelectorAll("[data-phase]")) one.addEventListener("click", () => { phase = one.dataset.phase; refresh(); });
  begin();
})();
