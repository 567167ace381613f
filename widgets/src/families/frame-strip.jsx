// A picture at a moment that one chooses, beside its whole way. The moments are recorded frames, or
// drawn here by the forward process: x_t = a_t x_0 + σ̄_t ε, one jump with one noise.
import { Picture, Pixels, Text, bitmap, colour, format, kept } from "../kit/index.js";
import { schedule_named } from "../math/diffusion/schedule.js";

const props = {
  t: "the step that one chooses: {label, min, max, step}.",
  moments: "the steps of the small pictures.",
  forward: "what is diffused: {x0, eps: [3, H, W], T, schedules: [[name, label], ...], lowest, highest}.",
};

const init = ({ t, forward }) => ({ t: t.min, schedule: forward.schedules[0][0] });

const controls = ({ t, forward }) => [
  { ...t, key: "t", kind: "slider" },
  ...(forward.schedules.length > 1 ? [{ kind: "choice", key: "schedule", label: "schedule", options: forward.schedules }] : []),
];

const tables_of = ({ forward }, state) => schedule_named(state.schedule, forward.T);

function readouts(given, { t, schedule }) {
  const { signal, noise_std, snr } = tables_of(given, { schedule });
  return [
    { key: "signal", label: "amplitude of the picture aₜ", value: signal[t] },
    { key: "noise_std", label: "deviation of the noise σ̄ₜ", value: noise_std[t] },
    { key: "snr", label: "signal to noise, SNRₜ", value: snr[t], infinite: "∞" },
  ];
}

const describe = (given, state) =>
  `step ${state.t}, ${state.schedule} schedule, signal to noise ${format(tables_of(given, state).snr[state.t], { infinite: "infinite" })}`;

// The picture at a step, of every `skip`-th pixel.
function frame(given, schedule, t, skip) {
  const { T, x0, eps, lowest, highest } = given.forward;
  return kept(given.forward, `${schedule} ${t} ${skip}`, () => {
    const { signal, noise_std } = schedule_named(schedule, T);
    const [, height, width] = x0.shape;
    const [keep, add, scale] = [signal[t], noise_std[t], 255 / (highest - lowest)];
    const [across, down, area] = [width / skip, height / skip, width * height];
    return bitmap(across, down, (channel, place) => {
      const row = (place / across) | 0;
      const at = channel * area + row * skip * width + (place - row * across) * skip;
      return scale * (keep * x0.data[at] + add * eps.data[at] - lowest);
    });
  });
}

function Strip({ props: given, state, width, label }) {
  const wide = width > 500;
  const { moments } = given;
  const per = Math.ceil(moments.length / 2);
  const { snr } = tables_of(given, state);
  const said = (t) => `SNR ${format(snr[t], { digits: 2, infinite: "∞" })}`;
  const [big, gap] = [wide ? 252 : width, 10];
  const left = wide ? big + 24 : 0;
  const small = (width - 2 - left - (per - 1) * gap) / per; // room for the frame of the last
  const top = wide ? 0 : big + 46;
  const step = wide ? (big + 42) / 2 : small + 42;
  return (
    <Picture width={width} height={wide ? big + 42 : top + 2 * step} label={label}>
      <Text x={big / 2} y={13} anchor="middle" bold>{`t = ${state.t}`}</Text>
      <Pixels x={0} y={20} width={big} height={big} source={frame(given, state.schedule, state.t, 1)} />
      <Text x={big / 2} y={big + 36} anchor="middle">{said(state.t)}</Text>
      {moments.map((t, n) => {
        const [x, y] = [left + (n % per) * (small + gap), top + Math.floor(n / per) * step];
        const room = Math.min(small, step - 42);
        const inset = (small - room) / 2;
        // Only the frame tells whether it is the chosen one.
        return kept(moments, `${width} ${state.schedule} ${t} ${t === state.t}`, () => (
          <g key={t}>
            <Text x={x + small / 2} y={y + 13} anchor="middle" size={11}>{`t = ${t}`}</Text>
            <Pixels x={x + inset} y={y + 20} width={room} height={room} source={frame(given, state.schedule, t, 2)} />
            {t === state.t && (
              <rect x={x + inset - 2} y={y + 18} width={room + 4} height={room + 4} fill="none" stroke={colour.blue} stroke-width="2" />
            )}
            <Text x={x + small / 2} y={y + room + 34} anchor="middle" size={11}>{said(t)}</Text>
          </g>
        ));
      })}
    </Picture>
  );
}

export default { name: "frame-strip", props, init, controls, readouts, describe, Picture: Strip };
