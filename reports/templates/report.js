// Flip comparison of pairs; what is detail is folded on phones, and opened before printing. The page works without it.
(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("has-js");
  var flips = [];
  document.querySelectorAll("figure.flip").forEach(function (figure) {
    var card = figure.closest(".card");
    var win = figure.querySelector("img");
    var lose = card && card.querySelector("img.lose");
    var caption = figure.querySelector("figcaption");
    if (!lose) return;
    var own = { src: win.src, alt: win.alt };
    var button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.title = "Show winner or loser in this place";
    win.replaceWith(button);
    button.appendChild(win);
    function show(flipped) {
      win.src = flipped ? lose.src : own.src;
      win.alt = flipped ? lose.alt : own.alt;
      caption.textContent = flipped ? "loser" : "winner";
      caption.className = flipped ? "loser" : "winner";
      button.setAttribute("aria-pressed", String(flipped));
    }
    button.addEventListener("click", function () {
      show(button.getAttribute("aria-pressed") !== "true");
    });
    flips.push(show);
  });
  var all = document.getElementById("flip-all");
  function flipAll() {
    var flipped = all.getAttribute("aria-pressed") !== "true";
    all.setAttribute("aria-pressed", String(flipped));
    flips.forEach(function (show) { show(flipped); });
  }
  if (all) {
    all.addEventListener("click", flipAll);
    document.addEventListener("keydown", function (event) {
      if (event.key.toLowerCase() === "f" && !event.ctrlKey && !event.metaKey && !event.altKey) {
        flipAll();
      }
    });
  }
  if (window.matchMedia("(max-width: 720px)").matches) {
    document.querySelectorAll("details.fold").forEach(function (item) { item.open = false; });
  }
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (item) { item.open = true; });
  });
})();
