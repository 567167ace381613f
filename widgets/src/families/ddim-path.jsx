// What few steps of DDIM cost, exactly, for data from N(0, 1). Left: the deviation of x_t as the
// distance from a corner, in the direction φ of its step; the true one stays on the quarter circle,
// and a step without noise drops a perpendicular onto the next direction. Right: where it ends.
import { Axes, Handle, Line, Picture, Text, colour, format, scales } from "../kit/index.js";
import { deviation, deviations, equal_angles, step_list } from "../math/diffusion/ddim.js";
import { schedule_named } from "../math/diffusion/schedule.js";

const props = {
  T: "the steps of the whole schedule.",
  schedule: "its name.",
  counts: "the number of steps: {label, min, max}.",
  spacings: "the lists that one may choose: [[name, label], ...].",
};

const init = ({ counts, spacings }) => ({ eta: 0, steps: counts.min, spacing: spacings[0][0] });

const controls = ({ counts, spacings }) => [
  { kind: "slider", key: "eta", label: "share of fresh noise η", min: 0, max: 1, step: 0.05 },
  { kind: "slider", key: "steps", step: 1, ...counts },
  { kind: "choice", key: "spacing", label: "list of steps", options: spacings },
];

const ends = ({ T, schedule }, { steps, spacing }, eta) => deviation(steps, { schedule, T, spacing, eta });

const lost = (deviation) => 1 - deviation ** 2;

function readouts(given, state) {
  const [chosen, quiet] = [ends(given, state, state.eta), ends(given, state, 0)];
  return [
    { key: "deviation", label: "deviation of the samples", value: chosen },
    { key: "cosines", label: "without noise: product of cosines", value: quiet },
    { key: "equal", label: "at equal angles: cos(π/2N)ᴺ", value: equal_angles(state.steps) },
    { key: "ratio", label: "variance lost, over that without noise", value: lost(chosen) / lost(quiet) },
  ];
}

const describe = (given, state) =>
  `${state.steps} steps, η ${state.eta}: deviation ${format(ends(given, state, state.eta))}, without noise ${format(ends(given, state, 0))}`;

// The curve over all counts, kept: it moves with η and the list alone.
const kept = new Map();
function curve({ T, schedule, counts }, spacing, eta) {
  const name = [T, schedule, counts.min, counts.max, spacing, eta].join();
  if (kept.size > 60) kept.clear();
  if (!kept.has(name)) {
    const n = Array.from({ length: counts.max - counts.min + 1 }, (_, i) => counts.min + i);
    kept.set(name, n.map((count) => [count, deviation(count, { schedule, T, spacing, eta })]));
  }
  return kept.get(name);
}

// The way of the deviation through the quarter circle.
function Way({ given, state, left, foot, radius }) {
  const schedule = schedule_named(given.schedule, given.T);
  const steps = step_list(given.T, state.steps, state.spacing);
  const at = [...steps, 0].map((t) => schedule.phi[t]);
  const place = (length, phi) => [left + radius * length * Math.cos(phi), foot - radius * length * Math.sin(phi)];
  const way = (eta) => deviations(schedule, steps, eta).map((length, i) => place(length, at[i]));
  const chosen = way(state.eta);
  return (
    <g>
      {at.map((phi, i) => <Line key={i} points={[[left, foot], place(1, phi)]} stroke={colour.faint} width={0.8} />)}
      <path d={`M${left} ${foot - radius}A${radius} ${radius} 0 0 1 ${left + radius} ${foot}`} fill="none" stroke={colour.axis} />
      <path d={`M${left} ${foot - radius - 8}V${foot}H${left + radius + 8}`} fill="none" stroke={colour.axis} />
      <Line points={way(0)} stroke={colour.ink} dash="5 3" width={1.4} />
      <Line points={chosen} stroke={colour.blue} width={2} />
      {chosen.map(([x, y], i) => <circle key={i} cx={x.toFixed(2)} cy={y.toFixed(2)} r={i === chosen.length - 1 ? 4.5 : 2.2} fill={colour.blue} />)}
      <Text x={left - 4} y={foot - radius - 14}>noise, t = {given.T}</Text>
      <Text x={left + radius + 8} y={foot + 17} anchor="end">data, t = 0</Text>
    </g>
  );
}

function Drawing({ props: given, state, set, width, label }) {
  const wide = width > 500;
  const radius = wide ? 236 : 250;
  const high = wide ? 190 : 180;
  const { counts } = given;
  const box = {
    x: [0, counts.max],
    y: [0, 1],
    left: wide ? 376 : 40,
    top: wide ? 76 : radius + 150,
    width: wide ? width - 388 : width - 52,
    height: high,
  };
  const { px, py } = scales(box);
  const drawn = (points) => points.map(([n, y]) => [px(n), py(y)]);
  const equal = curve(given, state.spacing, 0).map(([n]) => [n, equal_angles(n)]);
  const legend = [
    [`η = ${state.eta}`, colour.blue, "", 2],
    ["η = 0", colour.ink, "5 3", 1.4],
    ["equal angles, η = 0", colour.sand, "2 2", 1.8],
  ];
  return (
    <Picture width={width} height={box.top + high + 40} label={label} handles={set}>
      <Way given={given} state={state} left={16} foot={radius + 40} radius={radius} />
      {legend.map(([name, ink, dash, thick], n) => {
        const [x, y] = [box.left + (n === 1 ? 112 : 0), box.top - (n === 2 ? 30 : 50)];
        return (
          <g key={name}>
            <Line points={[[x, y - 4], [x + 26, y - 4]]} stroke={ink} dash={dash} width={thick} />
            <Text x={x + 32} y={y}>{name}</Text>
          </g>
        );
      })}
      <Axes box={box} xlabel={counts.label} ylabel="deviation of the samples; of the data: 1" />
      <path d={`M${box.left} ${py(1)}h${box.width}`} stroke={colour.axis} stroke-dasharray="1 3" />
      <Line points={drawn(equal)} stroke={colour.sand} dash="2 2" />
      <Line points={drawn(curve(given, state.spacing, 0))} stroke={colour.ink} dash="5 3" width={1.4} />
      <Line points={drawn(curve(given, state.spacing, state.eta))} stroke={colour.blue} width={2} />
      <Handle
        name="steps"
        label={counts.label}
        box={box}
        x={{ key: "steps", step: 1, ...counts, value: state.steps }}
        text={`${state.steps} steps`}
        set={set}
      >
        <path d={`M${px(state.steps)} ${box.top}v${high}`} stroke={colour.ink} stroke-width="12" stroke-opacity="0" />
        <path d={`M${px(state.steps)} ${box.top}v${high}`} stroke={colour.axis} />
        <circle cx={px(state.steps)} cy={py(ends(given, state, state.eta))} r="4.5" fill={colour.blue} />
      </Handle>
    </Picture>
  );
}

export default { name: "ddim-path", props, init, controls, readouts, describe, Picture: Drawing };
