// What one turns: each control is an object that a family lists, `{kind, key, label, ...}`.
//   slider  {min, max, step} or {stops: [...]}; `text(value)` says the value
//   choice  {options: [[value, label], ...]}
//   toggle  a yes or no
//   text    what one types, of at most `longest` letters
import { format } from "./format.js";

function Slider({ control, value, set }) {
  const { key, label, stops, text = format } = control;
  const { min, max, step } = stops ? { min: 0, max: stops.length - 1, step: 1 } : control;
  const number = stops ? stops.indexOf(value) : value;
  return (
    <label class="widget-slider">
      <span>{label}</span>
      <input
        type="range"
        data-control={key}
        min={min}
        max={max}
        step={step}
        value={number}
        aria-valuetext={text(value)}
        onInput={(event) => {
          const now = Number(event.currentTarget.value);
          set({ [key]: stops ? stops[now] : now });
        }}
      />
      <output>{text(value)}</output>
    </label>
  );
}

function Choice({ control, value, set, group }) {
  const { key, label, options } = control;
  return (
    <fieldset class="widget-choice">
      <legend>{label}</legend>
      {options.map(([option, name]) => (
        <label key={option}>
          <input
            type="radio"
            name={`${group}-${key}`}
            data-control={key}
            value={option}
            checked={option === value}
            onChange={() => set({ [key]: option })}
          />
          <span>{name}</span>
        </label>
      ))}
    </fieldset>
  );
}

const Toggle = ({ control, value, set }) => (
  <label class="widget-toggle">
    <input
      type="checkbox"
      data-control={control.key}
      checked={value}
      onChange={(event) => set({ [control.key]: event.currentTarget.checked })}
    />
    <span>{control.label}</span>
  </label>
);

const Field = ({ control, value, set }) => (
  <label class="widget-text">
    <span>{control.label}</span>
    <input
      type="text"
      data-control={control.key}
      value={value}
      maxlength={control.longest}
      spellcheck="false"
      autocomplete="off"
      autocapitalize="off"
      onInput={(event) => set({ [control.key]: event.currentTarget.value })}
    />
  </label>
);

const KINDS = { slider: Slider, choice: Choice, toggle: Toggle, text: Field };

export const Controls = ({ controls, state, set, group }) =>
  controls.map((control) => {
    const Kind = KINDS[control.kind];
    return <Kind key={control.key} control={control} value={state[control.key]} set={set} group={group} />;
  });

// Whether a control could have put this value into the state.
export function allows(control, value) {
  if (control.kind === "text") return typeof value === "string" && [...value].length <= control.longest;
  if (control.kind === "toggle") return typeof value === "boolean";
  if (control.kind === "choice") return control.options.some(([option]) => option === value);
  if (control.stops) return control.stops.includes(value);
  return Number.isFinite(value) && value >= control.min && value <= control.max;
}
