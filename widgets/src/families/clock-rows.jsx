// The clock that tells rows their places: what is added at each place, one row of it, and that row's
// products with all others.
import { Axes, Handle, Line, Picture, Pixels, Text, bitmap, colour, scales } from "../kit/index.js";
import { sinusoidal } from "../math/attention/positions.js";

const props = {
  places: "how many places there are.",
  widths: "the widths of a row that the slider offers.",
};

const init = ({ widths }) => ({ place: 0, width: widths[widths.length - 1] });

const controls = ({ places, widths }) => [
  { kind: "slider", key: "place", label: "place i", min: 0, max: places - 1, step: 1 },
  { kind: "slider", key: "width", label: "width d", stops: widths },
];

// The product of two rows, as a share of the largest, which is that of a row with itself.
const share = (row, other) => row.reduce((sum, entry, j) => sum + entry * other[j], 0) / (row.length / 2);

function readouts(given, { place, width }) {
  const [row, ...others] = sinusoidal([0, 1, 2, 6, 20].map((offset) => place + offset), width);
  return [1, 2, 6, 20].map((offset, n) => ({
    key: `offset${offset}`,
    label: `product with place i + ${offset}`,
    value: share(row, others[n]),
  }));
}

const describe = (given, { place, width }) => `place ${place}, rows of ${width} numbers`;

// The heat map depends on the width alone: the one drawn last is kept. Blue is 1, rust is −1, by the
// book's colours; what is near 0 is white.
let kept = {};
function clock(places, width) {
  if (kept.places === places && kept.width === width) return kept;
  const rows = sinusoidal(Array.from({ length: places }, (_, i) => i), width);
  const [high, low] = [[0, 114, 178], [213, 94, 0]];
  const source = bitmap(places, width, (channel, at) => {
    const entry = rows[at % places][Math.floor(at / places)];
    return 255 - Math.abs(entry) * (255 - (entry > 0 ? high : low)[channel]);
  });
  kept = { places, width, rows, source };
  return kept;
}

function Clock({ props: { places }, state, set, width: room, label }) {
  const { place, width } = state;
  const { rows, source } = clock(places, width);
  const row = rows[place];
  const wide = room > 500;
  const [left, top, high, side] = [40, 28, wide ? 168 : 150, wide ? 120 : 64];
  const across = room - left - side - (wide ? 40 : 24);
  const map = { x: [-0.5, places - 0.5], y: [0, width], left, top, width: across, height: high };
  const foot = { ...map, y: [-0.25, 1], top: top + high + 48, height: 110 };
  const beside = { x: [-1, 1], left: left + across + (wide ? 28 : 16) };
  const { px } = scales(map);
  const { py } = scales(foot);
  const [cell, step] = [across / places, high / width];
  const at = (entry) => beside.left + ((entry + 1) / 2) * side;
  return (
    <Picture width={room} height={foot.top + foot.height + 42} label={label} handles={set}>
      <Text x={left} y={15}>{wide ? "the rows ϖᵢ: a column for each place" : "rows ϖᵢ, upright"}</Text>
      <Text x={left - 6} y={top + 10} anchor="end" size={11}>0</Text>
      <Text x={left - 6} y={top + high} anchor="end" size={11}>{width - 1}</Text>
      <Text x={left - 18} y={top + high / 2} anchor="middle" turn={-90}>entry</Text>
      <Pixels x={left} y={top} width={across} height={high} source={source} />
      <Text x={beside.left + side / 2} y={15} anchor="middle" bold>{`place ${place}`}</Text>
      <path d={`M${at(-1)} ${top}v${high}M${at(1)} ${top}v${high}`} stroke={colour.faint} />
      <path d={`M${at(0)} ${top}v${high}`} stroke={colour.axis} />
      {[-1, 0, 1].map((entry) => (
        <Text key={entry} x={at(entry)} y={top + high + 16} anchor="middle" size={11}>{entry < 0 ? "−1" : entry}</Text>
      ))}
      {row.map((entry, j) => (
        <path key={j} d={`M${at(0)} ${top + (j + 0.5) * step}H${at(entry)}`} stroke={entry > 0 ? colour.blue : colour.rust} stroke-width={Math.min(0.8 * step, 12)} />
      ))}
      <Axes box={foot} xlabel="place" ylabel="its product with each place, over d/2" />
      <path d={`M${left} ${py(0)}h${across}`} stroke={colour.axis} stroke-dasharray="1 3" />
      <Line points={rows.map((other, i) => [px(i), py(share(row, other))])} stroke={colour.blue} />
      <Handle
        name="place"
        label="place i"
        box={map}
        x={{ key: "place", value: place, min: 0, max: places - 1, step: 1 }}
        text={`place ${place}`}
        set={set}
      >
        <rect x={left} y={top} width={across} height={foot.top + foot.height - top} fill={colour.ink} fill-opacity="0" />
        {[["paper", 4], ["ink", 1.6]].map(([name, pen]) => (
          <rect key={name} x={px(place) - cell / 2 - 1} y={top - 1} width={cell + 2} height={high + 2} fill="none" stroke={colour[name]} stroke-width={pen} />
        ))}
        <path d={`M${px(place)} ${foot.top}v${foot.height}`} stroke={colour.axis} />
        <circle cx={px(place)} cy={py(1)} r="3.5" fill={colour.blue} />
      </Handle>
    </Picture>
  );
}

export default { name: "clock-rows", props, init, controls, readouts, describe, Picture: Clock, still: 308 };
