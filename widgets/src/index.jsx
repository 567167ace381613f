// The interactive figures of the book. The same script draws a figure in the engine that builds the
// book, and makes it live on a page.
import families from "registry:families";
import functions from "registry:math";
import { Figure, WIDE, opening } from "./figure.jsx";
import { unpack } from "./kit/arrays.js";
import { inPrint } from "./kit/colours.js";
import { allows } from "./kit/controls.jsx";
import { html } from "./kit/html.js";
import { arrived, start } from "./page.jsx";

function read(json) {
  const spec = JSON.parse(json);
  const family = families[spec.family];
  if (!family) throw new Error(`there is no family ${spec.family}, only ${Object.keys(families).join(", ")}`);
  return { spec, family, props: unpack(spec.props) };
}

// What is wrong with a figure, one sentence; "" if nothing is.
function fault(json) {
  const { spec, family, props } = read(json);
  const missing = Object.keys(family.props).filter((name) => !(name in props) && family.props[name].endsWith("."));
  if (missing.length) return `${spec.family} needs ${missing[0]}: ${family.props[missing[0]]}`;
  const unknown = Object.keys(props).find((name) => !(name in family.props));
  if (unknown) return `${spec.family} knows no ${unknown}, only ${Object.keys(family.props).join(", ")}`;
  const first = family.init(props);
  for (const { state } of spec.stills) {
    for (const [key, value] of Object.entries(state)) {
      if (!(key in first)) return `the state of ${spec.family} has no ${key}, only ${Object.keys(first).join(", ")}`;
      const control = family.controls(props, { ...first, ...state }).find((one) => one.key === key);
      if (control && !allows(control, value)) return `${key} cannot be ${JSON.stringify(value)}`;
    }
  }
  return "";
}

// The page's HTML of a figure before anything runs.
function page(json) {
  const { spec, family, props } = read(json);
  return html(<Figure family={family} spec={spec} props={props} state={opening(family, spec, props)} group="figure" />);
}

// The picture in each still's state, as SVG in the colours of print.
function stills(json, width) {
  const { spec, family, props } = read(json);
  return spec.stills.map(({ state }) => {
    const all = { ...opening(family, spec, props), ...state };
    return inPrint(html(<family.Picture props={props} state={all} width={width} label={spec.alt} />));
  });
}

const widths = (json) => ({ wide: WIDE, still: read(json).family.still ?? WIDE });

// A readout's numbers in a state that differs from the opening one.
function readouts(json, change) {
  const { spec, family, props } = read(json);
  const state = { ...opening(family, spec, props), ...change };
  return Object.fromEntries(family.readouts(props, state).map(({ key, value }) => [key, value]));
}

// The controls of a figure in a state that differs from the opening one.
function controls(json, change) {
  const { spec, family, props } = read(json);
  return family.controls(props, { ...opening(family, spec, props), ...change });
}

const state = (json) => {
  const { spec, family, props } = read(json);
  return opening(family, spec, props);
};

// Arrays as plain lists.
const plain = (value) =>
  JSON.parse(JSON.stringify(value, (key, part) => (ArrayBuffer.isView(part) ? Array.from(part) : part)));

const names = () => Object.keys(families).sort();

globalThis.bookFigures = { arrived, controls, fault, functions, names, page, plain, readouts, state, stills, unpack, widths };
if (typeof document !== "undefined") start(families);
