// A small language model of letters reads what one types: its heads, who reads whom in each, and what
// it guesses. The model has layers of attention alone: x + MultiHead(x).
import { Picture, Text, colour, format, rows } from "../kit/index.js";
import { SIGNS, encode, induction_score, linear, multi_head, pattern, previous_score } from "../math/attention/multi_head.js";
import { entropy } from "../math/attention/scaled_dot_product.js";

const props = {
  text: "what is read at first; letters other than a to z are spaces.",
  heads: "the number of heads of each layer.",
  model: "the weights: {letters: [27, d], places: [n, d], layers: [{w_q, w_k, w_v, w_o}, ...], out: [27, d], bias: [27]}.",
};

const names = ({ model, heads }) => model.layers.flatMap((_, l) => Array.from({ length: heads }, (_, h) => `${l + 1}.${h + 1}`));

const init = (given) => ({ text: given.text, head: names(given)[0], causal: true, row: 1 });

const longest = ({ model }) => model.places.shape[0];

const controls = (given, state) => [
  { kind: "text", key: "text", label: "text", longest: longest(given) },
  { kind: "choice", key: "head", label: "head", options: names(given).map((name) => [name, name]) },
  { kind: "toggle", key: "causal", label: "causal mask" },
  { kind: "slider", key: "row", label: "letter", min: 1, max: encode(state.text, longest(given)).length, step: 1 },
];

// What the model makes of a text; the last few are kept.
const kept = new Map();
export function run({ model, heads }, text, causal) {
  const name = `${causal} ${text}`;
  if (!kept.has(model)) kept.set(model, new Map());
  const known = kept.get(model);
  if (!known.has(name)) {
    const tokens = encode(text, model.places.shape[0]);
    const [letters, places] = [rows(model.letters), rows(model.places)];
    let x = tokens.map((token, i) => letters[token].map((part, c) => part + places[i][c]));
    const maps = model.layers.flatMap((layer) => {
      const { weights, output } = multi_head(layer, heads, x, causal);
      x = x.map((row, i) => row.map((part, c) => part + output[i][c]));
      return weights;
    });
    const guesses = linear(x, model.out, model.bias).map((logits) => {
      const best = Math.max(...logits);
      const total = logits.reduce((sum, logit) => sum + Math.exp(logit - best), 0);
      return { token: logits.indexOf(best), probability: 1 / total };
    });
    const scores = maps.map((weights) => [previous_score(weights), induction_score(weights, tokens)]);
    if (known.size > 8) known.clear();
    known.set(name, { tokens, maps, guesses, scores, paths: maps.map(path) });
  }
  return known.get(name);
}

// A map's cells in eight shades of the root of a share, each a path of unit squares.
function path(weights) {
  const shades = Array.from({ length: 8 }, () => "");
  weights.forEach((row, i) =>
    row.forEach((share, j) => {
      const shade = Math.min(Math.floor(8 * Math.sqrt(share)), 7);
      if (shade) shades[shade] += `M${j} ${i}h1v1h-1z`;
    }),
  );
  return shades;
}

const INKS = { "letter before": "blue", "what followed": "rust", mixed: "ink" };

function seen(given, state) {
  const found = run(given, state.text, state.causal);
  const chosen = names(given).indexOf(state.head);
  const at = Math.min(state.row, found.tokens.length) - 1;
  return { ...found, chosen, at, weights: found.maps[chosen], shares: found.maps[chosen][at], guess: found.guesses[at] };
}

const said = (token) => (token ? SIGNS[token] : "space");

function readouts(given, state) {
  const { weights, shares, scores, chosen, at, guess } = seen(given, state);
  const [previous, induction] = scores[chosen];
  const later = weights.reduce((sum, row, i) => sum + row.reduce((part, share, j) => part + (j > i ? share : 0), 0), 0);
  return [
    { key: "previous", label: "head: weight on the letter before", value: previous },
    { key: "induction", label: "on what followed", value: induction },
    { key: "later", label: "on later letters", value: later / weights.length },
    { key: "read", label: `letter ${at + 1}: letters read, eᴴ`, value: Math.exp(entropy(shares)) },
    { key: "guess", label: `model's guess of the next: ${said(guess.token)}, with probability`, value: guess.probability },
  ].filter(({ value }) => !Number.isNaN(value));
}

function describe(given, state) {
  const { tokens, shares, scores, chosen, at } = seen(given, state);
  const largest = Math.max(...shares);
  const j = shares.indexOf(largest);
  return `head ${state.head}, ${pattern(...scores[chosen])}: letter ${at + 1}, ${said(tokens[at])}, reads letter ${j + 1}, ${said(tokens[j])}, with ${format(largest)}`;
}

function Weights({ paths, n, x, y, side, causal, ink }) {
  const stairs = Array.from({ length: n }, (_, i) => `H${n}V${i + 1}H${i + 2}`);
  return (
    <g transform={`translate(${x} ${y}) scale(${side / n})`} shape-rendering="crispEdges">
      {causal && n > 1 && <path d={`M1 0${stairs.slice(0, n - 1).join("")}`} fill={colour.faint} fill-opacity="0.45" />}
      {paths.map((d, shade) => shade > 0 && <path key={shade} d={d} fill={colour[ink]} fill-opacity={(shade + 0.5) / 8} />)}
    </g>
  );
}

function Reader({ props: given, state, set, width, label }) {
  const { tokens, shares, scores, paths, chosen, at } = seen(given, state);
  const wide = width > 500;
  const n = tokens.length;
  const per = wide ? n : Math.min(n, 20);
  const pitch = Math.min(17, width / per);
  const foot = 22 + Math.ceil(n / per) * 28;
  const top = foot + 24;
  const side = wide ? 242 : 260;
  const [left, across, down] = wide ? [side + 22, 95, 126] : [0, 87, 118];
  const small = across - 10;
  const first = wide ? top : top + side + 24;
  const height = first + 2 * down - (wide ? 6 : 10);
  const over = ({ currentTarget, clientY }) => {
    const box = currentTarget.getBoundingClientRect();
    set({ row: 1 + Math.min(Math.max(Math.floor(((clientY - box.top) / box.height) * n), 0), n - 1) });
  };
  const ink = (r) => INKS[pattern(...scores[r])];
  return (
    <Picture width={width} height={height} label={label}>
      <Text x={0} y={13}>{`letter ${at + 1}, ${said(tokens[at])}, reads:`}</Text>
      {tokens.map((token, i) => {
        const [x, y] = [(i % per) * pitch, 20 + Math.floor(i / per) * 28];
        return (
          <g key={i} cursor="pointer" onPointerEnter={set && (() => set({ row: i + 1 }))} onPointerDown={set && (() => set({ row: i + 1 }))}>
            <rect x={x + 0.5} y={y + 0.5} width={pitch - 1} height="23" fill={colour.paper} stroke={colour.faint} />
            <rect x={x + 0.5} y={y + 0.5} width={pitch - 1} height="23" fill={colour[ink(chosen)]} fill-opacity={0.85 * Math.sqrt(shares[i])} />
            {i === at && <rect x={x + 1} y={y + 1} width={pitch - 2} height="22" fill="none" stroke={colour.ink} stroke-width="2" />}
            <Text x={x + pitch / 2} y={y + 16} anchor="middle" size={13}>{token ? SIGNS[token] : ""}</Text>
          </g>
        );
      })}
      <Text x={0} y={top - 8} bold>{`head ${state.head}: ${pattern(...scores[chosen])}`}</Text>
      <Weights paths={paths[chosen]} n={n} x={1} y={top} side={side} causal={state.causal} ink={ink(chosen)} />
      <rect x="1" y={top} width={side} height={side} fill="none" stroke={colour.axis} />
      <rect x="1" y={top + (at / n) * side - 1} width={side} height={side / n + 2} fill="none" stroke={colour.ink} stroke-width="1.5" />
      <rect x="1" y={top} width={side} height={side} fill-opacity="0" cursor="pointer" onPointerMove={set && over} />
      {names(given).map((name, r) => {
        const x = left + (r % given.heads) * across;
        const y = first + Math.floor(r / given.heads) * down;
        return (
          <g key={name} cursor="pointer" onPointerDown={set && (() => set({ head: name }))}>
            <Text x={x} y={y - 8} size={11} bold={r === chosen}>{name}</Text>
            <Weights paths={paths[r]} n={n} x={x} y={y} side={small} causal={state.causal} ink={ink(r)} />
            <rect x={x} y={y} width={small} height={small} fill={colour.paper} fill-opacity="0" stroke={r === chosen ? colour.ink : colour.faint} stroke-width={r === chosen ? 2 : 1} />
            <Text x={x} y={y + small + 14} size={10.5}>{pattern(...scores[r])}</Text>
          </g>
        );
      })}
    </Picture>
  );
}

export default { name: "text-reader", props, init, controls, readouts, describe, Picture: Reader };
