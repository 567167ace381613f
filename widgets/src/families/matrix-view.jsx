// The weights of attention as a table, with its mask and its scaling: who reads whom, and how evenly.
import { Picture, Text, colour, format, rows } from "../kit/index.js";
import { attention_scores, attention_weights, entropy, visible } from "../math/attention/scaled_dot_product.js";

const props = {
  q: "the queries [n, d], of which a slider takes the first entries of each.",
  k: "the keys [m, d].",
  widths: "the widths that the slider offers.",
  masks: "what one may choose: [[key, label, {last, causal, window, length}], ...].",
};

const init = ({ masks, widths }) => ({ mask: masks[0][0], scaled: true, width: widths[widths.length - 1], row: 0 });

const controls = ({ q, masks, widths }) => [
  { kind: "choice", key: "mask", label: "mask", options: masks.map(([key, label]) => [key, label]) },
  { kind: "toggle", key: "scaled", label: "divide scores by √dₖ" },
  { kind: "slider", key: "width", label: "width dₖ", stops: widths },
  { kind: "slider", key: "row", label: "query i", min: 0, max: q.shape[0] - 1, step: 1 },
];

// The mask and the weights in a state. A mask may show only the last queries.
export function table({ q, k, masks }, state) {
  const [, , { last = q.shape[0], causal = false, window = null, length = k.shape[0] }] = masks.find(([key]) => key === state.mask);
  const cut = (vectors) => rows(vectors).map((row) => row.slice(0, state.width));
  const [queries, keys] = [cut(q).slice(q.shape[0] - last), cut(k)];
  const mask = visible(last, keys.length, causal, window).map((row) => row.map((seen, j) => seen && j < length));
  const scores = attention_scores(queries, keys, state.scaled ? undefined : 1);
  const first = q.shape[0] - last;
  return { mask, weights: attention_weights(scores, mask), first, at: Math.max(state.row - first, 0) };
}

function readouts(given, state) {
  const { mask, weights, at } = table(given, state);
  const p = weights[at];
  return [
    { key: "keys", label: "keys it may read", value: mask[at].filter(Boolean).length },
    { key: "largest", label: "largest share", value: Math.max(...p) },
    { key: "entropy", label: "entropy H in nats", value: entropy(p) },
    { key: "read", label: "keys read, so to speak: eᴴ", value: Math.exp(entropy(p)) },
  ];
}

function describe(given, state) {
  const { weights, at, first } = table(given, state);
  const largest = Math.max(...weights[at]);
  return `query ${first + at}: largest share ${format(largest)}, at key ${weights[at].indexOf(largest)}`;
}

function Table({ props: given, state, width, label }) {
  const { mask, weights, at, first } = table(given, state);
  const [n, m] = [weights.length, weights[0].length];
  const wide = width > 500;
  const [left, top] = [34, 36];
  const room = wide ? 290 : width - left - 2;
  const cell = room / m;
  const high = top + room + 6;
  const bars = { left: left + room + 70, foot: top + room, cell: (width - left - room - 74) / m };
  return (
    <Picture width={width} height={high} label={label}>
      <Text x={left + room / 2} y={12} anchor="middle">keys j</Text>
      {weights[0].map((_, j) => (
        <Text key={j} x={left + (j + 0.5) * cell} y={30} anchor="middle" size={11}>{j}</Text>
      ))}
      {weights.map((row, i) => {
        const y = top + (first + i) * cell;
        return (
          <g key={i}>
            <Text x={left - 8} y={y + cell / 2 + 4} anchor="end" size={11} bold={i === at}>{first + i}</Text>
            {row.map((share, j) => (
              <g key={j}>
                {mask[i][j] ? (
                  <rect x={left + j * cell} y={y} width={cell} height={cell} fill={colour.blue} fill-opacity={0.04 + 0.96 * share} stroke={colour.axis} stroke-width="0.7" />
                ) : (
                  <path d={`M${left + (j + 0.38) * cell} ${y + 0.38 * cell}l${0.24 * cell} ${0.24 * cell}m0 ${-0.24 * cell}l${-0.24 * cell} ${0.24 * cell}`} stroke={colour.faint} />
                )}
              </g>
            ))}
            {i === at && <rect x={left - 1} y={y - 1} width={room + 2} height={cell + 2} fill="none" stroke={colour.rust} stroke-width="2" />}
          </g>
        );
      })}
      {wide && (
        <g>
          <Text x={bars.left} y={12}>{`shares of query ${first + at}`}</Text>
          <path d={`M${bars.left} ${top}V${bars.foot}h${m * bars.cell}`} fill="none" stroke={colour.axis} />
          {[0, 0.5, 1].map((share) => (
            <Text key={share} x={bars.left - 6} y={bars.foot - share * room + 4} anchor="end" size={11}>{share}</Text>
          ))}
          {weights[at].map((share, j) => (
            <rect key={j} x={bars.left + (j + 0.15) * bars.cell} y={bars.foot - share * room} width={0.7 * bars.cell} height={share * room} fill={colour.blue} />
          ))}
        </g>
      )}
    </Picture>
  );
}

export default { name: "matrix-view", props, init, controls, readouts, describe, Picture: Table, still: 300 };
