// Wide tables scroll sideways: by keyboard, too.
window.addEventListener("load", function () {
  function reach() {
    document.querySelectorAll(".md-typeset__scrollwrap").forEach(function (box) {
      box.tabIndex = 0;
    });
  }
  reach();
  new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
});
