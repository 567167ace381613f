// The posterior of a step: what x_0 says about x_{t-1}, what x_t says, and both together, three bells.
import { Handle, Line, Picture, Text, colour, format, scales, tick, ticks } from "../kit/index.js";
import { from_data, from_noisy, posterior } from "../math/diffusion/elbo.js";
import { tables } from "../math/diffusion/schedule.js";

const props = {
  beta: "the variances of the steps, from t = 1.",
  x: "the ends of the axis: [lowest, highest].",
};

const init = ({ beta }) => ({ t: beta.shape[0], xt: 0, x0: 0 });

const line = ({ x: [min, max] }, key, label) => ({ key, label, min, max, step: 0.05 });
const noisy = (given) => line(given, "xt", "xₜ");
const data = (given) => line(given, "x0", "x₀");

const controls = (given) => [
  { kind: "slider", key: "t", label: "step t", min: 1, max: given.beta.shape[0], step: 1 },
  { kind: "slider", ...noisy(given) },
  { kind: "slider", ...data(given) },
];

function bells({ beta }, { t, xt, x0 }) {
  const schedule = tables([0, ...beta.data]);
  return [
    { key: "data", label: "prior: x₀ alone", ink: colour.sand, ...from_data(x0, t, schedule) },
    { key: "noisy", label: "likelihood: xₜ alone", ink: colour.rust, ...from_noisy(xt, t, schedule) },
    { key: "both", label: "posterior: both", ink: colour.blue, ...posterior(x0, xt, t, schedule) },
  ];
}

const readouts = (given, state) =>
  bells(given, state).flatMap(({ key, label, mean, variance }) => [
    { key: `${key}:mean`, group: label, label: "mean", value: mean },
    { key: `${key}:variance`, group: label, label: "variance", value: variance },
    { key: `${key}:precision`, group: label, label: "1 / variance", value: 1 / variance, infinite: "∞" },
  ]);

function describe(given, state) {
  const [, , { mean, variance }] = bells(given, state);
  return `step ${state.t}: posterior mean ${format(mean)}, variance ${format(variance)}`;
}

const peak = ({ variance }) => (variance > 0 ? 1 / Math.sqrt(2 * Math.PI * variance) : 0);

// A bell, as far as the axis goes; of one without width there is a line.
function Bell({ bell, box }) {
  const { px, py } = scales(box);
  const { mean, variance, ink, key } = bell;
  const std = Math.sqrt(variance);
  const [from, to] = [Math.max(mean - 4 * std, box.x[0]), Math.min(mean + 4 * std, box.x[1])];
  if (std === 0) return <path d={`M${px(mean)} ${box.top}V${py(0)}`} stroke={ink} stroke-width="2.4" />;
  if (from >= to) return null;
  const points = Array.from({ length: 81 }, (_, n) => from + ((to - from) * n) / 80).map((x) => [
    px(x),
    py(peak(bell) * Math.exp(-((x - mean) ** 2) / (2 * variance))),
  ]);
  const foot = py(0);
  const path = `M${points[0][0]} ${foot}${points.map(([x, y]) => `L${x} ${y}`).join("")}L${points[80][0]} ${foot}Z`;
  return (
    <g>
      <path d={path} fill={ink} fill-opacity={key === "both" ? 0.12 : 0.35} />
      {key === "both" && <Line points={points} stroke={ink} width={2} />}
    </g>
  );
}

function Drawing({ props: given, state, set, width, label }) {
  const still = width < 200;
  const high = still ? 110 : 200;
  const all = bells(given, state);
  const [prior, likelihood] = all;
  const per = width > 500 ? 3 : 1;
  const legend = still ? 16 : 22 * (3 / per);
  const box = {
    x: given.x,
    y: [0, 1.06 * Math.max(...all.map(peak))],
    left: still ? 4 : 16,
    top: legend + 30,
    width: width - (still ? 8 : 32),
    height: high,
  };
  const { px, py } = scales(box);
  const inside = (x) => Math.min(Math.max(x, given.x[0]), given.x[1]);
  const foot = box.top + high;
  return (
    <Picture width={width} height={foot + 44} label={label} handles={set}>
      {!still && all.map(({ label: name, ink }, n) => (
        <g key={name}>
          <rect x={box.left + (n % per) * (box.width / per)} y={4 + 22 * Math.floor(n / per)} width="22" height="10" fill={ink} fill-opacity="0.6" />
          <Text x={box.left + (n % per) * (box.width / per) + 28} y={14 + 22 * Math.floor(n / per)}>{name}</Text>
        </g>
      ))}
      {all.map((bell) => <Bell key={bell.key} bell={bell} box={box} />)}
      <path d={`M${box.left} ${foot}h${box.width}`} stroke={colour.axis} />
      {ticks(given.x, still ? 5 : 9).map((value) => (
        <g key={value}>
          <path d={`M${px(value)} ${foot}v4`} stroke={colour.axis} />
          <Text x={px(value)} y={foot + 16} anchor="middle" size={11}>{tick(value)}</Text>
        </g>
      ))}
      {!still && <Text x={box.left + box.width} y={foot + 36} anchor="end">xₜ₋₁</Text>}
      <Line points={[[px(state.xt), box.top - 14], [px(inside(likelihood.mean)), py(peak(likelihood))]]} stroke={colour.rust} dash="3 3" width={1.2} />
      {prior.variance > 0 && <Line points={[[px(state.x0), foot], [px(prior.mean), py(peak(prior))]]} stroke={colour.ink} dash="3 3" width={1.2} />}
      <Handle name="xt" label="xₜ" box={box} x={{ ...noisy(given), value: state.xt }} text={`xₜ ${format(state.xt)}`} set={set}>
        <circle cx={px(state.xt)} cy={box.top - 14} r="14" fill={colour.rust} fill-opacity="0" />
        <circle cx={px(state.xt)} cy={box.top - 14} r={still ? 3.5 : 5} fill={colour.rust} />
        <Text x={px(state.xt) + 9} y={box.top - 12} size={still ? 11 : 12}>xₜ</Text>
      </Handle>
      <Handle name="x0" label="x₀" box={box} x={{ ...data(given), value: state.x0 }} text={`x₀ ${format(state.x0)}`} set={set}>
        <circle cx={px(state.x0)} cy={foot} r="14" fill={colour.ink} fill-opacity="0" />
        <circle cx={px(state.x0)} cy={foot} r={still ? 3.5 : 5} fill={colour.ink} />
        <Text x={px(state.x0)} y={foot + (still ? 32 : 34)} anchor="middle" size={still ? 11 : 12}>x₀</Text>
      </Handle>
    </Picture>
  );
}

export default { name: "posterior-bells", props, init, controls, readouts, describe, Picture: Drawing, still: 142 };
