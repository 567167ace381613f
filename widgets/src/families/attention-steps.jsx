// The formula of attention in eight parts, on numbers small enough to check by hand.
import { Picture, Text, colour, format } from "../kit/index.js";
import { attention_scores, attention_weights, averages, visible } from "../math/attention/scaled_dot_product.js";

const props = {
  q: "the queries: [n, d_k] numbers.",
  k: "the keys: [m, d_k].",
  v: "the values: [m, d_v].",
};

// Each part: its name, how it looks in the formula and where, what comes before its matrix, its shape, what it is.
const PARTS = {
  q: { name: "Q", at: 136, room: 22, before: "", shape: "n × dₖ", says: "Q: a row for each query" },
  k: { name: "Kᵀ", at: 162, room: 28, before: "", shape: "dₖ × m", says: "Kᵀ: a column for each key" },
  product: { name: "QKᵀ", before: "=", shape: "n × m", says: "QKᵀ: each query times each key; dₖ is gone" },
  root: { name: "÷ √dₖ", at: 211, room: 60, before: "÷ √dₖ =", shape: "n × m", says: "÷ √dₖ: sums of dₖ terms come back to size 1" },
  mask: { name: "+ M", at: 267, room: 42, before: "+ M =", shape: "n × m", says: "+ M: −∞ at each key that may not be read" },
  softmax: { name: "softmax", at: 62, room: 92, before: "softmax →", shape: "n × m", says: "softmax: each row turns into shares, together 1" },
  v: { name: "V", at: 318, room: 22, before: "", shape: "m × dᵥ", says: "V: a row for each value" },
  output: { name: "AV", before: "=", shape: "n × dᵥ", says: "AV: each row is a mean of the values; m is gone" },
};
const KEYS = Object.keys(PARTS);

const init = () => ({ part: "product", causal: false });

const controls = () => [
  { kind: "choice", key: "part", label: "part", options: KEYS.map((key) => [key, PARTS[key].name]) },
  { kind: "toggle", key: "causal", label: "causal mask" },
];

const transposed = (rows) => rows[0].map((_, j) => rows.map((row) => row[j]));

// The matrix of each part.
export function matrices({ q, k, v }, { causal }) {
  const root = attention_scores(q, k);
  const seen = visible(q.length, k.length, causal);
  const softmax = attention_weights(root, seen);
  return {
    q,
    k: transposed(k),
    product: attention_scores(q, k, 1),
    root,
    mask: root.map((row, i) => row.map((score, j) => (seen[i][j] ? score : -Infinity))),
    softmax,
    v,
    output: averages(softmax, v),
  };
}

const readouts = (given, state) =>
  matrices(given, state)[state.part].flatMap((row, i) =>
    row.map((value, j) => ({ key: `${i}:${j}`, label: `row ${i + 1}, ${j + 1}:`, value, infinite: "−∞" })),
  );

const describe = (given, state) => {
  const rows = matrices(given, state)[state.part];
  return `${PARTS[state.part].says}. ${rows.map((row) => row.map((value) => format(value, { infinite: "−∞" })).join(", ")).join("; ")}`;
};

const written = (value) => (Number.isInteger(value) ? format(value) : value === -Infinity ? "−∞" : value.toFixed(2).replace("-", "−"));

function Matrix({ rows, x, y, cell, key, chosen, click }) {
  const [wide, high] = [rows[0].length * cell, rows.length * 22];
  const { name, shape } = PARTS[key];
  const title = { root: "S", mask: "S + M", softmax: "A", output: "O = AV" }[key] ?? name;
  return (
    <g cursor="pointer" onPointerDown={click}>
      <Text x={x + wide / 2} y={y - 7} anchor="middle" bold={chosen}>{title}</Text>
      {rows.map((row, i) =>
        row.map((value, j) => (
          <g key={`${i} ${j}`}>
            <rect
              x={x + j * cell}
              y={y + i * 22}
              width={cell}
              height="22"
              fill={colour[key === "softmax" ? "green" : value < 0 ? "rust" : "blue"]}
              fill-opacity={key === "softmax" ? 0.6 * value : Number.isFinite(value) ? Math.min(Math.abs(value) / (key === "v" || key === "output" ? 80 : 8), 0.5) : 0}
              stroke={colour.axis}
              stroke-width="0.7"
            />
            <Text x={x + (j + 0.5) * cell} y={y + i * 22 + 15} anchor="middle" size={11}>{written(value)}</Text>
          </g>
        )),
      )}
      {chosen && <rect x={x - 2} y={y - 2} width={wide + 4} height={high + 4} fill="none" stroke={colour.rust} stroke-width="2.5" />}
      <Text x={x + wide / 2} y={y + high + 16} anchor="middle" size={11}>{shape}</Text>
    </g>
  );
}

function Steps({ props: given, state, set, width, label }) {
  const all = matrices(given, state);
  const wide = width > 500;
  const room = (key) => (key === "output" ? 44 : wide ? 36 : 28);
  const lines = wide ? [KEYS.slice(0, 4), KEYS.slice(4)] : [KEYS.slice(0, 3), KEYS.slice(3, 5), KEYS.slice(5)];
  const click = (part) => set && (() => set({ part }));
  const brace = (part, from, to, y) => (
    <g cursor="pointer" onPointerDown={click(part)}>
      <rect x={from} y={y - 4} width={to - from} height="11" fill={colour.paper} fill-opacity="0" />
      <path d={`M${from} ${y}v4H${to}v-4`} fill="none" stroke={state.part === part ? colour.rust : colour.axis} stroke-width={state.part === part ? 3 : 1.5} />
    </g>
  );
  let y = wide ? 82 : 106;
  const drawn = [];
  for (const line of lines) {
    const high = Math.max(...line.map((key) => all[key].length)) * 22;
    let x = 2;
    for (const key of line) {
      const { before } = PARTS[key];
      const gap = before ? before.length * (wide ? 8 : 7) + 18 : x > 2 ? 12 : 0;
      const top = y + (high - all[key].length * 22) / 2;
      if (before) drawn.push(<Text x={x + gap / 2} y={y + high / 2 + 4} anchor="middle">{before}</Text>);
      drawn.push(Matrix({ rows: all[key], x: x + gap, y: top, cell: room(key), key, chosen: state.part === key, click: click(key) }));
      x += gap + all[key][0].length * room(key);
    }
    y += high + 50;
  }
  return (
    <Picture width={width} height={y - 28} label={label}>
      {[["(", 118], [")", 296]].map(([sign, x]) => <Text key={sign} x={x} y={28} anchor="middle" size={21}>{sign}</Text>)}
      {KEYS.filter((key) => PARTS[key].at).map((key) => {
        const { name, at, room } = PARTS[key];
        return (
          <g key={key} cursor="pointer" onPointerDown={click(key)}>
            <rect x={at - room / 2} y="6" width={room} height="29" fill={colour.rust} fill-opacity={state.part === key ? 0.25 : 0} />
            <Text x={at} y={28} anchor="middle" size={21}>{name}</Text>
          </g>
        );
      })}
      {brace("product", 126, 177, 38)}
      {brace("output", 17, 330, 49)}
      <Text x={wide ? 350 : 2} y={wide ? 27 : 78} size={wide ? 12 : 11.5}>{PARTS[state.part].says}</Text>
      {drawn}
    </Picture>
  );
}

export default { name: "attention-steps", props, init, controls, readouts, describe, Picture: Steps };
