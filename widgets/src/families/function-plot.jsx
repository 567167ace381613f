// Curves of functions of one number, in one or two panels, with a line that one moves across them.
import functions from "registry:math";
import { Axes, DASHES, Handle, Line, Picture, Text, colour, kept, scales } from "../kit/index.js";

// What a figure of this family is made of; a sentence that ends in a full stop is asked for.
const props = {
  x: "the number along the axis: {key, label, min, max, step, log}.",
  panels: "one or two pictures: {label, function, y: [lowest, highest], args, level}.",
  curves: "a list of {key, label, colour, args}: what the functions get besides x.",
  columns: "what is read at the line: a list of {key, label, function, args, infinite}.",
  sliders: "further sliders, whose values the functions get too: {key, label, min, max, step}",
};

const init = ({ x, curves, sliders = [] }) => ({
  [x.key]: x.min,
  ...Object.fromEntries(curves.map(({ key }) => [key, true])),
  ...Object.fromEntries(sliders.map(({ key, min }) => [key, min])),
});

const controls = ({ x, curves, sliders = [] }) => [
  { ...x, kind: "slider" },
  ...sliders.map((slider) => ({ ...slider, kind: "slider" })),
  ...(curves.length > 1 ? curves.map(({ key, label }) => ({ key, label, kind: "toggle" })) : []),
];

const arguments_of = (place, curve, { sliders = [] }, state) => ({
  ...Object.fromEntries(sliders.map(({ key }) => [key, state[key]])),
  ...place.args,
  ...curve.args,
});

const shown = ({ curves }, state) => curves.filter(({ key }) => state[key]);

const readouts = (given, state) =>
  shown(given, state).flatMap((curve) =>
    given.columns.map((column) => ({
      key: `${curve.key}:${column.key}`,
      group: curve.label,
      label: column.label,
      infinite: column.infinite,
      value: functions[column.function](state[given.x.key], arguments_of(column, curve, given, state)),
    })),
  );

const describe = (given, state) =>
  `${given.x.label} ${state[given.x.key]}; ${shown(given, state).map(({ label }) => label).join(", ")}`;

// Points of a curve, as many as there are pixels to tell apart, at values that the slider can have.
function points(panel, curve, given, state, { px, py, vx }) {
  const { min, max, step, log } = given.x;
  const every = Math.max(1, Math.round((max - min) / step / 100)) * step;
  const [low, high] = panel.y;
  const f = functions[panel.function];
  const args = arguments_of(panel, curve, given, state);
  const count = Math.round((max - min) / every);
  // At the ends at full resolution: there some curves dive.
  const inner = Array.from({ length: count - 1 }, (_, n) => min + (n + 1) * every);
  const even = [min, min + step, ...inner, max - step, max];
  const at = log ? [...new Set(even.map((_, n) => Math.round(vx(px(min) + ((px(max) - px(min)) * n) / (even.length - 1)))))] : even;
  return at.map((x) => {
    const y = f(x, args);
    // Outside of the picture a curve is drawn just outside, and clipped by what has no ink.
    return [px(x), y < low || y > high ? NaN : py(y)];
  });
}

function Panel({ given, panel, box, state, set, label }) {
  const at = scales(box);
  const { x } = given;
  const { top, height, left, width } = box;
  const place = at.px(state[x.key]);
  return (
    <g>
      {kept(panel, width, () => <Axes box={box} xlabel={x.label} ylabel={panel.label} />)}
      {panel.level !== undefined && (
        <path d={`M${left} ${at.py(panel.level)}h${width}`} stroke={colour.axis} stroke-dasharray="1 3" />
      )}
      {given.curves.map((curve, n) => {
        // A curve is the same wherever the line stands.
        const name = JSON.stringify([curve.key, width, arguments_of(panel, curve, given, state)]);
        const draw = () => (
          <Line key={curve.key} points={points(panel, curve, given, state, at)} stroke={colour[curve.colour]} dash={DASHES[n % 4]} />
        );
        return state[curve.key] && kept(panel, name, draw);
      })}
      <Handle
        name={x.key}
        label={label}
        box={box}
        x={{ ...x, value: state[x.key] }}
        text={`${x.label} ${state[x.key]}`}
        set={set}
      >
        <path d={`M${place} ${top}v${height}`} stroke={colour.ink} stroke-width="12" stroke-opacity="0" />
        <path d={`M${place} ${top}v${height}`} stroke={colour.axis} />
        {shown(given, state).map((curve) => {
          const y = functions[panel.function](state[x.key], arguments_of(panel, curve, given, state));
          const seen = y >= panel.y[0] && y <= panel.y[1];
          return seen && <circle key={curve.key} cx={place} cy={at.py(y)} r="3.5" fill={colour[curve.colour]} />;
        })}
      </Handle>
    </g>
  );
}

function Drawing({ props: given, state, set, width, label }) {
  const { panels, curves, x } = given;
  const columns = width > 500 ? panels.length : 1;
  const [across, high] = [width / columns, 190];
  const rows = Math.ceil(panels.length / columns);
  const legend = 22 * Math.ceil(curves.length / (width > 500 ? 4 : 2));
  return (
    <Picture width={width} height={legend + rows * (high + 72)} label={label} handles={set}>
      {curves.map((curve, n) => {
        const per = width > 500 ? 4 : 2;
        const [left, y] = [44 + (n % per) * ((width - 44) / per), 14 + 22 * Math.floor(n / per)];
        return (
          <g key={curve.key} opacity={state[curve.key] ? 1 : 0.35}>
            <Line points={[[left, y - 4], [left + 30, y - 4]]} stroke={colour[curve.colour]} dash={DASHES[n % 4]} />
            <Text x={left + 36} y={y}>{curve.label}</Text>
          </g>
        );
      })}
      {panels.map((panel, n) => {
        const [column, row] = [n % columns, Math.floor(n / columns)];
        const box = {
          x: [x.min, x.max],
          log: x.log,
          y: panel.y,
          left: column * across + 44,
          top: legend + row * (high + 72) + 26,
          width: across - 60,
          height: high,
        };
        return <Panel key={n} given={given} panel={panel} box={box} state={state} set={set} label={`${x.label}, in ${panel.label}`} />;
      })}
    </Picture>
  );
}

export default { name: "function-plot", props, init, controls, readouts, describe, Picture: Drawing };
