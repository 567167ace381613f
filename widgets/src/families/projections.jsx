// Words in a plane, and the queries and keys that two matrices make of them: each turns the plane.
// The score of a key is its shadow on the query, times the query's length, over the root of 2.
import { Picture, Text, colour, format, scales } from "../kit/index.js";
import { linear } from "../math/attention/multi_head.js";
import { attention_scores, attention_weights, visible } from "../math/attention/scaled_dot_product.js";

const props = {
  words: "the words.",
  x: "where each is in the plane: [[x, y], ...].",
  reach: "the plane goes from -reach to reach.",
};

const turn = (key, label) => ({ kind: "slider", key, label, min: -180, max: 180, step: 15, text: (angle) => `${format(angle)}°` });

const init = () => ({ word: 0, queries: 0, keys: 0 });

const controls = ({ words }) => [
  turn("queries", "queries turned by"),
  turn("keys", "keys turned by"),
  { kind: "choice", key: "word", label: "who asks", options: words.map((word, i) => [i, word]) },
];

// The matrix, as nn.Linear keeps it, that turns rows by an angle in degrees.
export function turning(angle) {
  const [cosine, sine] = [Math.cos((angle * Math.PI) / 180), Math.sin((angle * Math.PI) / 180)];
  return { data: [cosine, -sine, sine, cosine], shape: [2, 2] };
}

export function asked({ x }, state) {
  const [queries, keys] = [linear(x, turning(state.queries)), linear(x, turning(state.keys))];
  const all = attention_weights(attention_scores(queries, keys), visible(x.length, x.length, false));
  return { query: queries[state.word], keys, weights: all[state.word] };
}

const readouts = (given, state) =>
  asked(given, state).weights.map((weight, j) => ({ key: `weight:${j}`, label: given.words[j], value: weight }));

function describe(given, state) {
  const { weights } = asked(given, state);
  const largest = Math.max(...weights);
  return `${given.words[state.word]} reads ${given.words[weights.indexOf(largest)]} most, with ${format(largest)}`;
}

function Plane({ props: given, state, set, width, label }) {
  const { words, reach } = given;
  const { query, keys, weights } = asked(given, state);
  const wide = width > 500;
  const side = wide ? 250 : Math.min(width, 260);
  const { px, py } = scales({ x: [-reach, reach], y: [-reach, reach], left: (wide ? 0 : (width - side) / 2) + 1, top: 1, width: side - 2, height: side - 2 });
  const length = Math.hypot(...query);
  const [right, up] = query.map((part) => part / length);
  const [left, top, row] = wide ? [side + 40, 46, 34] : [1, side + 26, 22];
  const room = width - left - 100;
  const aside = (x) => x < 0 !== Math.abs(x) > 0.45 * reach;
  return (
    <Picture width={width} height={wide ? side : top + words.length * row} label={label}>
      <rect x={px(-reach)} y={py(reach)} width={side - 2} height={side - 2} fill="none" stroke={colour.faint} />
      <path d={`M${px(-reach * right)} ${py(-reach * up)}L${px(reach * right)} ${py(reach * up)}`} stroke={colour.faint} />
      {keys.map(([x, y], j) => {
        const shadow = x * right + y * up;
        return <path key={j} d={`M${px(x)} ${py(y)}L${px(shadow * right)} ${py(shadow * up)}`} stroke={colour.sand} stroke-dasharray="2 2" />;
      })}
      <path d={`M${px(0)} ${py(0)}L${px(query[0])} ${py(query[1])}`} stroke={colour.blue} stroke-width="3" />
      <circle cx={px(query[0])} cy={py(query[1])} r="6" fill={colour.blue} />
      {keys.map(([x, y], j) => (
        <g key={j} cursor="pointer" onPointerDown={set && (() => set({ word: j }))}>
          <circle cx={px(x)} cy={py(y)} r={3 + 6 * weights[j]} fill={colour.sand} stroke={colour.paper} />
          <Text x={px(x) + (aside(x) ? -11 : 11)} y={py(y) + (y < 0 ? 17 : -7)} anchor={aside(x) ? "end" : "start"} size={11}>{words[j]}</Text>
        </g>
      ))}
      <Text x={left} y={top - 12} size={11}>{`weights of ${words[state.word]}`}</Text>
      {weights.map((weight, j) => (
        <g key={j}>
          <Text x={left} y={top + j * row + 14} size={11}>{words[j]}</Text>
          <rect x={left + 52} y={top + j * row + 2} width={weight * room} height="16" fill={colour.sand} />
          <Text x={left + 58 + weight * room} y={top + j * row + 14} size={11}>{weight.toFixed(2)}</Text>
        </g>
      ))}
    </Picture>
  );
}

export default { name: "projections", props, init, controls, readouts, describe, Picture: Plane, still: 196 };
