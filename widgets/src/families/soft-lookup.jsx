// A dictionary made soft: a query among keys in a plane, the weight of each, and the mean of their
// values. The score of a key is its product with the query.
import { Handle, Picture, Text, colour, format, scales } from "../kit/index.js";
import { lookup_weights, soft_lookup } from "../math/attention/recurrence.js";

const props = {
  keys: "the keys [m, 2], of three entries or fewer.",
  values: "the value of each key [m, 1].",
  query: "where the query begins: [x, y].",
  reach: "the query moves between -reach and reach.",
  temperatures: "the temperatures that the slider offers; the figure begins at 1.",
};

const INKS = ["blue", "sand", "rust"];

const init = ({ query: [x, y] }) => ({ x, y, temperature: 1 });

const controls = ({ reach, temperatures }) => [
  { kind: "slider", key: "temperature", label: "temperature τ", stops: temperatures },
  { kind: "slider", key: "x", label: "query, to the right", min: -reach, max: reach, step: 0.1 },
  { kind: "slider", key: "y", label: "query, upwards", min: -reach, max: reach, step: 0.1 },
];

export function looked_up({ keys, values }, { x, y, temperature }) {
  const scores = keys.map(([across, up]) => x * across + y * up);
  const [[answer]] = soft_lookup([scores], values, temperature);
  return { scores, weights: lookup_weights(scores, temperature), answer };
}

function readouts(given, state) {
  const { weights, answer } = looked_up(given, state);
  return [
    ...weights.map((weight, j) => ({ key: `weight:${j}`, label: `weight of key ${j + 1}`, value: weight })),
    { key: "sum", label: "all weights", value: weights.reduce((sum, weight) => sum + weight, 0) },
    { key: "answer", label: "answer c", value: answer },
  ];
}

const describe = (given, state) => {
  const { weights, answer } = looked_up(given, state);
  return `weights ${weights.map((weight) => format(weight)).join(", ")}; answer ${format(answer)}`;
};

// The weights as parts of one bar, and below it the values with their mean.
function Answer({ given, found, left, top, width }) {
  const values = given.values.map(([value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const at = (value) => left + 12 + ((value - low) / (high - low)) * (width - 24);
  const line = top + 88;
  let from = left;
  return (
    <g>
      <Text x={left} y={top + 10}>weights, together 1</Text>
      {found.weights.map((weight, j) => {
        const [start, room] = [from, weight * width];
        from += room;
        return (
          <g key={j}>
            <rect x={start} y={top + 18} width={room} height="24" fill={colour[INKS[j]]} stroke={colour.paper} />
            {room > 34 && <Text x={start + room / 2} y={top + 57} anchor="middle" size={11}>{weight.toFixed(2)}</Text>}
          </g>
        );
      })}
      <path d={`M${at(low)} ${line}H${at(high)}`} stroke={colour.axis} />
      {values.map((value, j) => (
        <g key={j}>
          <circle cx={at(value)} cy={line} r="5" fill={colour[INKS[j]]} />
          <Text x={at(value)} y={line + 22} anchor="middle" size={11}>{value}</Text>
        </g>
      ))}
      <path d={`M${at(found.answer)} ${line - 3}l-6 -11h12z`} fill={colour.ink} />
      <Text x={Math.min(Math.max(at(found.answer), left + 52), left + width - 52)} y={line + 38} anchor="middle" bold>
        {`answer ${found.answer.toFixed(2)}`}
      </Text>
    </g>
  );
}

function Lookup({ props: given, state, set, width, label }) {
  const wide = width > 500;
  const side = wide ? 250 : Math.min(width, 260);
  const { reach } = given;
  const box = { x: [-reach, reach], y: [-reach, reach], left: (wide ? 0 : (width - side) / 2) + 1, top: 1, width: side - 2, height: side - 2 };
  const { px, py } = scales(box);
  const found = looked_up(given, state);
  const axis = (key, value) => ({ key, value, min: -reach, max: reach, step: 0.1 });
  return (
    <Picture width={width} height={wide ? side : side + 142} label={label} handles={set}>
      <rect x={box.left} y="1" width={box.width} height={box.height} fill="none" stroke={colour.faint} />
      <path d={`M${px(-reach)} ${py(0)}H${px(reach)}M${px(0)} ${py(-reach)}V${py(reach)}`} stroke={colour.faint} />
      {given.keys.map(([x, y], j) => (
        <g key={j}>
          <path d={`M${px(0)} ${py(0)}L${px(x)} ${py(y)}`} stroke={colour[INKS[j]]} stroke-width={1 + 7 * found.weights[j]} />
          <circle cx={px(x)} cy={py(y)} r={4 + 4 * found.weights[j]} fill={colour[INKS[j]]} />
          <Text x={px(x) + (x < 0 ? -10 : 10)} y={py(y) + (y < 0 ? 16 : -9)} anchor={x < 0 ? "end" : "start"} size={11}>
            {`S${"₁₂₃"[j]} = ${format(Number(found.scores[j].toFixed(2)))}`}
          </Text>
        </g>
      ))}
      <path d={`M${px(0)} ${py(0)}L${px(state.x)} ${py(state.y)}`} stroke={colour.ink} stroke-dasharray="5 3" />
      <Text x={px(state.x)} y={py(state.y) + (state.y < -0.8 * reach ? -14 : 23)} anchor="middle" size={11} bold>query</Text>
      <Handle
        name="query"
        label="the query"
        box={box}
        x={axis("x", state.x)}
        y={axis("y", state.y)}
        text={`right ${format(state.x)}, up ${format(state.y)}`}
        set={set}
      >
        <circle cx={px(state.x)} cy={py(state.y)} r="16" fill-opacity="0" />
        <circle cx={px(state.x)} cy={py(state.y)} r="8" fill={colour.paper} stroke={colour.ink} stroke-width="2" />
      </Handle>
      <Answer given={given} found={found} left={wide ? side + 40 : 1} top={wide ? 56 : side + 12} width={wide ? width - side - 41 : width - 2} />
    </Picture>
  );
}

export default { name: "soft-lookup", props, init, controls, readouts, describe, Picture: Lookup, still: 196 };
