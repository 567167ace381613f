/* The map of results: one part at a time, first the one that the reader comes from; and what a result
   rests on and what rests on it, lit up. Without this script all parts stand one under another. */
"use strict";

{
  const parts = [...document.querySelectorAll(".map-part")];

  const light = (map, name) => {
    for (const line of map.querySelectorAll(".use")) {
      line.classList.toggle("below", name !== null && line.dataset.to === name);
      line.classList.toggle("above", name !== null && line.dataset.from === name);
    }
    map.classList.toggle("lit", name !== null);
  };
  for (const map of document.querySelectorAll("[data-map]")) {
    for (const box of map.querySelectorAll("a")) {
      for (const on of ["mouseenter", "focus"]) box.addEventListener(on, () => light(map, box.dataset.name));
      for (const off of ["mouseleave", "blur"]) box.addEventListener(off, () => light(map, null));
    }
  }

  // A result's label in the address, or else the page that led here, tells the part to begin with.
  const own = (part) => [...part.querySelectorAll("[data-map] a:not(.guest)")];
  const asked = location.hash.slice(1);
  const from = document.referrer.replace(/[#?].*/, "");
  const named = (box) => box.dataset.name === asked;
  const page = (box) => new URL(box.getAttribute("href"), location).href.replace(/#.*/, "");
  const start = parts.find((part) => own(part).some(named))
    || parts.find((part) => own(part).some((box) => page(box) === from))
    || parts[0];

  if (parts.length > 1) {
    const bar = document.createElement("div");
    bar.className = "map-bar";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Part of the book");
    const show = (chosen) => parts.forEach((part, i) => {
      part.hidden = part !== chosen;
      bar.children[i].setAttribute("aria-pressed", part === chosen);
    });
    for (const part of parts) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = part.querySelector(".rubric").textContent;
      button.addEventListener("click", () => show(part));
      bar.append(button);
    }
    parts[0].before(bar);
    show(start);
  }
  own(start ?? document).find(named)?.focus();
}
