export { rows } from "./arrays.js";
export { bitmap } from "./bitmap.js";
export { colour } from "./colours.js";
export { format, tick, ticks } from "./format.js";
export { Axes, DASHES, Handle, Line, Picture, Pixels, Text, kept, scales } from "./plot.jsx";
