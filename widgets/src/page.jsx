// Figures on a page: each becomes live when it is about to be seen, and keeps its state in the
// address, `#fig-schedules?t=500&cosine=false`.
import { hydrate } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Figure, NARROW, WIDE, opening } from "./figure.jsx";
import { unpack } from "./kit/arrays.js";
import { allows } from "./kit/controls.jsx";

const waiting = {};

// Called by a script that brings the data of a figure.
export const arrived = (name, props) => waiting[name](props);

// A script beside the page, since a page that is a file may not fetch.
const fetched = (name, address) =>
  new Promise((resolve, reject) => {
    waiting[name] = resolve;
    const script = document.createElement("script");
    script.onerror = reject;
    script.src = address;
    document.head.append(script);
  });

const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// The part of the address that is about the figure `id`: what differs from the opening state.
function address(id, state, first) {
  const changed = Object.keys(state).filter((key) => written(state[key]) !== written(first[key]));
  return changed.length ? `#${id}?${new URLSearchParams(changed.map((key) => [key, written(state[key])]))}` : `#${id}`;
}

// The state that the address asks for, as far as the figure's controls allow it; none, if it is
// about something else.
function asked(id, family, props, first) {
  const [name, query] = location.hash.slice(1).split("?");
  if (name !== id || !query) return undefined;
  const state = { ...first };
  for (const [key, text] of new URLSearchParams(query)) {
    if (!(key in first)) continue;
    let value = text;
    if (typeof first[key] !== "string") {
      try {
        value = JSON.parse(text);
      } catch {
        continue;
      }
    }
    const control = family.controls(props, state).find((one) => one.key === key);
    if (control && allows(control, value)) state[key] = value;
  }
  return state;
}

function Live({ root, id, family, spec, props }) {
  const first = useMemo(() => opening(family, spec, props), []);
  const [ready, setReady] = useState(false);
  const [state, setState] = useState(first);
  const [width, setWidth] = useState(WIDE);
  const spoken = useRef();
  const set = (change) => setState((before) => ({ ...before, ...change }));
  useEffect(() => {
    const measured = new ResizeObserver(([{ contentRect }]) => setWidth(contentRect.width < 500 ? NARROW : WIDE));
    measured.observe(root);
    const follow = () => setState((before) => asked(id, family, props, first) ?? before);
    follow();
    addEventListener("hashchange", follow);
    root.dataset.live = "";
    setReady(true);
  }, []);
  // The address and what is read aloud follow a little later, when the hand rests.
  useEffect(() => {
    root.dataset.state = JSON.stringify(state);
    if (!ready || state === first) return undefined;
    const later = setTimeout(() => {
      const now = address(id, state, first);
      if (now !== location.hash) history.replaceState(history.state, "", now);
      spoken.current.textContent = family.describe(props, state);
    }, 400);
    return () => clearTimeout(later);
  }, [state]);
  const changed = written(state) !== written(first);
  return (
    <>
      <Figure
        family={family}
        spec={spec}
        props={props}
        state={state}
        set={ready ? set : undefined}
        reset={changed ? () => setState(first) : undefined}
        width={width}
        group={id}
      />
      <p class="widget-spoken" role="status" ref={spoken} />
    </>
  );
}

// The pictures that a figure will want, so that none has to be waited for while one drags.
function fetch_ahead(value) {
  if (typeof value === "string" && /^[\w./-]+\.(webp|png|jpeg)$/.test(value)) new Image().src = value;
  else if (value && typeof value === "object" && !ArrayBuffer.isView(value)) Object.values(value).forEach(fetch_ahead);
}

async function enliven(root, families) {
  const spec = JSON.parse(root.querySelector("script").textContent);
  const packed = spec.data ? await fetched(spec.data, new URL(root.dataset.script, location)) : spec.props;
  const id = root.closest("[id]").id;
  const face = root.querySelector(".widget-face");
  const props = unpack(packed);
  fetch_ahead(props);
  hydrate(<Live root={root} id={id} family={families[spec.family]} spec={spec} props={props} />, face);
}

export function start(families) {
  const ready = () => {
    const seen = new IntersectionObserver(
      (all) => {
        for (const { target, isIntersecting } of all) {
          if (!isIntersecting) continue;
          seen.unobserve(target);
          enliven(target, families);
        }
      },
      { rootMargin: "600px" },
    );
    for (const root of document.querySelectorAll("[data-widget]")) seen.observe(root);
    // The address of a state is no place that a browser knows.
    const name = location.hash.slice(1).split("?");
    if (name.length > 1) document.getElementById(name[0])?.scrollIntoView();
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", ready);
  else ready();
}
