// x_t taken apart: the part of the picture and the part of the noise, as pixels and as arrows. Picture
// and noise are brought to length 1, so that the parts have the lengths a_t and σ̄_t.
import { Line, Picture, Pixels, Text, bitmap, colour, format } from "../kit/index.js";
import { schedule_named } from "../math/diffusion/schedule.js";

const props = {
  x0: "the picture [3, H, W].",
  eps: "the noise [3, H, W].",
  T: "the steps of the schedules.",
  schedules: "those that one may choose: [[name, label], ...].",
};

const init = ({ schedules }) => ({ t: 0, schedule: schedules[0][0] });

const controls = ({ T, schedules }) => [
  { kind: "slider", key: "t", label: "step t", min: 0, max: T, step: 1 },
  { kind: "choice", key: "schedule", label: "schedule", options: schedules },
];

// Both as vectors of length 1, and the cosine of the angle between them.
const units = new Map();
function united({ x0, eps }) {
  if (!units.has(x0)) {
    const unit = ({ data }) => {
      const length = Math.sqrt(data.reduce((sum, x) => sum + x * x, 0));
      return Array.from(data, (x) => x / length);
    };
    const [x, e] = [unit(x0), unit(eps)];
    units.set(x0, { x, e, cosine: x.reduce((sum, value, n) => sum + value * e[n], 0) });
  }
  return units.get(x0);
}

function parts(given, { t, schedule }) {
  const { signal, noise_std } = schedule_named(schedule, given.T);
  const [keep, add] = [signal[t], noise_std[t]];
  const { cosine } = united(given);
  return { keep, add, cosine, whole: Math.sqrt(keep ** 2 + add ** 2 + 2 * keep * add * cosine) };
}

function readouts(given, state) {
  const { keep, add, whole } = parts(given, state);
  return [
    { key: "signal", label: "length of the signal part, aₜ", value: keep },
    { key: "noise", label: "length of the noise part, σ̄ₜ", value: add },
    { key: "squares", label: "sum of their squares", value: keep ** 2 + add ** 2 },
    { key: "whole", label: "length of xₜ itself", value: whole },
  ];
}

function describe(given, state) {
  const { keep, add, whole } = parts(given, state);
  return `step ${state.t}: signal ${format(keep)}, noise ${format(add)}, sum ${format(whole)}`;
}

const LOUD = 2.5; // deviations from mid-grey to white

function pixels(given, keep, add) {
  const { x, e } = united(given);
  const [, height, width] = given.x0.shape;
  const scale = (127.5 * Math.sqrt(x.length)) / LOUD;
  const area = width * height;
  return bitmap(width, height, (channel, place) => 127.5 + scale * (keep * x[channel * area + place] + add * e[channel * area + place]));
}

// An arrow with its head.
function Arrow({ from: [x0, y0], to: [x1, y1], ink }) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (length < 1) return null;
  const [dx, dy] = [(x1 - x0) / length, (y1 - y0) / length];
  const size = Math.min(9, length);
  const side = (turn) => [x1 - size * (dx - turn * 0.45 * dy), y1 - size * (dy + turn * 0.45 * dx)];
  return (
    <g>
      <Line points={[[x0, y0], [x1, y1]]} stroke={ink} width={2} />
      <Line points={[side(1), [x1, y1], side(-1)]} stroke={ink} width={2} />
    </g>
  );
}

function Drawing({ props: given, state, width, label }) {
  const wide = width > 500;
  const { keep, add, cosine } = parts(given, state);
  const gap = 24;
  const radius = wide ? 150 : 170;
  const side = wide ? (width - radius - 30 - 3 * gap) / 3 : (width - 2 * gap) / 3;
  const shown = [
    [keep, 0, "aₜ x₀", "+"],
    [0, add, "σ̄ₜ ε", "="],
    [keep, add, `xₜ at t = ${state.t}`],
  ];
  const [left, foot] = wide ? [width - radius - 12, radius + 24] : [85, side + radius + 56];
  const place = (x, y) => [left + radius * (x + y * cosine), foot - radius * y * Math.sqrt(1 - cosine ** 2)];
  const [signal, whole] = [place(keep, 0), place(keep, add)];
  return (
    <Picture width={width} height={foot + 24} label={label}>
      {shown.map(([a, s, name, sign], n) => {
        const x = n * (side + gap);
        const y = wide ? 36 : 22;
        return (
          <g key={name}>
            <Text x={x + side / 2} y={y - 8} anchor="middle">{name}</Text>
            <Pixels x={x} y={y} width={side} height={side} source={pixels(given, a, s)} />
            {sign && <Text x={x + side + gap / 2} y={y + side / 2 + 6} anchor="middle" size={18}>{sign}</Text>}
          </g>
        );
      })}
      <path d={`M${left} ${foot - radius}A${radius} ${radius} 0 0 1 ${left + radius} ${foot}`} fill="none" stroke={colour.axis} stroke-dasharray="2 3" />
      <path d={`M${left} ${foot - radius}V${foot}H${left + radius}`} fill="none" stroke={colour.axis} />
      <Text x={left - 6} y={foot - radius + 4} anchor="end">ε</Text>
      <Text x={left + radius} y={foot + 17} anchor="middle">x₀</Text>
      <Arrow from={[left, foot]} to={signal} ink={colour.blue} />
      <Arrow from={signal} to={whole} ink={colour.rust} />
      <Arrow from={[left, foot]} to={whole} ink={colour.ink} />
    </Picture>
  );
}

export default { name: "parts-sum", props, init, controls, readouts, describe, Picture: Drawing };
