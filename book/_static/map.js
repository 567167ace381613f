/* The map of results: zoom by buttons, and light up what a result rests on and what rests on it. */
"use strict";

for (const map of document.querySelectorAll("[data-map]")) {
  const frame = map.querySelector(".map-frame");
  const drawing = map.querySelector("svg");
  const size = { width: drawing.width.baseVal.value, height: drawing.height.baseVal.value };
  let scale = 1;

  const zoom = (factor) => {
    scale = Math.min(3, Math.max(0.15, factor));
    drawing.setAttribute("width", size.width * scale);
    drawing.setAttribute("height", size.height * scale);
  };
  const bar = document.createElement("div");
  bar.className = "map-bar";
  const actions = [
    ["−", "Smaller", () => zoom(scale / 1.25)],
    ["+", "Larger", () => zoom(scale * 1.25)],
    ["fit", "Fit the width", () => zoom(frame.clientWidth / size.width)],
  ];
  for (const [text, label, action] of actions) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", action);
    bar.append(button);
  }
  map.prepend(bar);
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(scale * Math.exp(-event.deltaY / 300));
  }, { passive: false });

  const light = (name) => {
    for (const line of drawing.querySelectorAll(".use")) {
      line.classList.toggle("below", name !== null && line.dataset.to === name);
      line.classList.toggle("above", name !== null && line.dataset.from === name);
    }
    map.classList.toggle("lit", name !== null);
  };
  for (const box of drawing.querySelectorAll("a")) {
    for (const on of ["mouseenter", "focus"]) box.addEventListener(on, () => light(box.dataset.name));
    for (const off of ["mouseleave", "blur"]) box.addEventListener(off, () => light(null));
  }
}
