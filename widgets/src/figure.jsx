// A figure: its question, its picture, what one turns, what it reads, and where all that is from.
import { Controls } from "./kit/controls.jsx";
import { Readouts } from "./kit/readout.jsx";

// The widths of a picture, in its own units: on a page, and on a page as narrow as a hand.
export const WIDE = 640;
export const NARROW = 340;

// `family` draws; `set` is missing where nothing runs: in print, and until a page is ready.
export function Figure({ family, spec, props, state, set, reset, width = WIDE, group }) {
  const controls = family.controls(props, state);
  return (
    <>
      <div class="widget-question">
        <p>{spec.question}</p>
        <button type="button" disabled={!reset} onClick={reset} aria-label="Start again" title="Start again">↺</button>
      </div>
      <div class="widget-picture">
        <family.Picture props={props} state={state} set={set} width={width} label={spec.alt} />
      </div>
      <div class="widget-controls" inert={!set}>
        <Controls controls={controls} state={state} set={set} group={group} />
      </div>
      <Readouts readouts={family.readouts(props, state)} />
      <p class="widget-origin">{spec.origin}</p>
    </>
  );
}

// The state in which a figure opens: that of its first still.
export const opening = (family, spec, props) => ({ ...family.init(props), ...spec.stills[0].state });
