// A link into a fold opens it, and what scrolls sideways shows that it does.
const named = () => document.getElementById(decodeURIComponent(location.hash.slice(1)));

const show = () => named().scrollIntoView({ behavior: "instant" });

function reveal() {
  let opened = false;
  for (let at = named(); at; at = at.parentElement) {
    if (at.localName === "details" && !at.open) opened = at.open = true;
  }
  if (opened) show();
}

function hint(box) {
  const left = box.scrollLeft > 1;
  const right = box.scrollLeft + box.clientWidth < box.scrollWidth - 1;
  const more = left ? (right ? "both" : "left") : right ? "right" : "";
  if (more) box.dataset.more = more;
  else delete box.dataset.more;
  if (more) box.tabIndex = 0;
}

function hints() {
  const sizes = new ResizeObserver((all) => all.forEach((one) => hint(one.target)));
  const boxes = "div.math > mjx-container, .picture, .bd-article table";
  for (const box of document.querySelectorAll(boxes)) {
    sizes.observe(box);
    box.addEventListener("scroll", () => hint(box), { passive: true });
  }
}

addEventListener("hashchange", reveal);
addEventListener("load", async () => {
  reveal();
  let moved = false;
  for (const kind of ["wheel", "touchstart", "pointerdown", "keydown"]) {
    addEventListener(kind, () => (moved = true), { once: true, passive: true });
  }
  if (window.MathJax) await MathJax.startup.promise;
  // Formulas push down what stands below them; whoever has not moved yet is brought there again,
  // two frames later, when the browser has done its own adjusting.
  for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  if (named() && !moved) show();
  hints();
});
