// The book's colours, by name: what an attribute says on the page, and what it becomes in print.
// Their values for the light and for the dark are in widgets.css.
const PRINT = {
  ink: "#1f1f1f",
  axis: "#4d4d4d",
  faint: "#c9c9c9",
  paper: "#ffffff",
  blue: "#0072b2",
  sand: "#e69f00",
  rust: "#d55e00",
  sky: "#56b4e9",
  green: "#009e73",
  pink: "#cc79a7",
};

export const colour = Object.fromEntries(Object.keys(PRINT).map((name) => [name, `var(--widget-${name})`]));

export const inPrint = (svg) =>
  svg.replace(/var\(--widget-(\w+)\)/g, (_, name) => (name === "font" ? "DejaVu Sans" : PRINT[name]));
