// Pictures: SVG with attributes alone, so that the same tree is drawn by a browser and for print.
import { encoded, paint } from "./bitmap.js";
import { colour } from "./colours.js";
import { tick, ticks } from "./format.js";

const round = (value) => Math.round(value * 100) / 100;

// The whole picture of a figure. `label` says what is seen; a figure with handles is a group.
export function Picture({ width, height, label, handles, children }) {
  return (
    <svg
      xmlns="http://www.w3.org/2000/svg"
      viewBox={`0 0 ${width} ${height}`}
      width={width}
      height={height}
      role={handles ? "group" : "img"}
      aria-label={label}
      font-family="var(--widget-font)"
      font-size="12"
      fill={colour.ink}
    >
      {children}
    </svg>
  );
}

// A line of text at a point; `anchor` is start, middle or end. Letters with small indices are
// written as such (ᾱₜ), since a text has one size.
export const Text = ({ x, y, anchor = "start", size = 12, bold, turn, fill, children }) => (
  <text
    x={round(x)}
    y={round(y)}
    text-anchor={anchor}
    font-size={size}
    font-weight={bold && "bold"}
    fill={fill}
    transform={turn && `rotate(${turn} ${round(x)} ${round(y)})`}
  >
    {children}
  </text>
);

// The scales of a box: from values to places and back. With `log`, x goes by ln(1 + x).
export function scales({ x, y, left, top, width, height, log }) {
  const [bent, back] = log ? [Math.log1p, Math.expm1] : [(value) => value, (value) => value];
  const first = bent(x[0]);
  const across = width / (bent(x[1]) - first);
  const up = height / (y[1] - y[0]);
  return {
    px: (value) => round(left + (bent(value) - first) * across),
    py: (value) => round(top + height - (value - y[0]) * up),
    vx: (place) => back(first + (place - left) / across),
    vy: (place) => y[0] + (top + height - place) / up,
  };
}

const DECADES = [0, 1, 3, 10, 30, 100, 300, 1000];

// Axes around a box, with round numbers. `box` is what `scales` takes.
export function Axes({ box, xlabel, ylabel }) {
  const { x, y, left, top, width, height, log } = box;
  const { px, py } = scales(box);
  const foot = top + height;
  const marks = log ? DECADES.filter((value) => x[0] <= value && value <= x[1]) : ticks(x, width > 200 ? 5 : 4);
  return (
    <g>
      <path d={`M${left} ${top}V${foot}H${left + width}`} fill="none" stroke={colour.axis} />
      {marks.map((value) => (
        <g key={value}>
          <path d={`M${px(value)} ${foot}v4`} stroke={colour.axis} />
          <Text x={px(value)} y={foot + 16} anchor="middle" size={11}>{tick(value)}</Text>
        </g>
      ))}
      {ticks(y, 5).map((value) => (
        <g key={value}>
          <path d={`M${left} ${py(value)}h-4`} stroke={colour.axis} />
          <Text x={left - 7} y={py(value) + 4} anchor="end" size={11}>{tick(value)}</Text>
        </g>
      ))}
      <Text x={left + width / 2} y={foot + 33} anchor="middle">{xlabel}</Text>
      <Text x={left} y={top - 9}>{ylabel}</Text>
    </g>
  );
}

export const DASHES = ["", "7 3", "7 3 2 3", "2 3"];

// A curve through points; it stops where a value is not finite and goes on after it.
export function Line({ points, stroke, dash, width = 1.8 }) {
  let pen = "M";
  let path = "";
  for (const [x, y] of points) {
    if (Number.isFinite(x) && Number.isFinite(y)) {
      path += `${pen}${round(x)} ${round(y)}`;
      pen = "L";
    } else pen = "M";
  }
  return <path d={path} fill="none" stroke={stroke} stroke-width={width} stroke-dasharray={dash || null} />;
}

// A picture of pixels: `source` is an address or what `bitmap` returns. On a live page a canvas shows
// the latter, since each new image would have the browser look at the whole page.
export const Pixels = ({ x, y, width, height, source }) =>
  typeof source === "string" || typeof document === "undefined" ? (
    <image
      x={x}
      y={y}
      width={width}
      height={height}
      href={source.data ? encoded(source) : source}
      image-rendering="optimizeSpeed"
      preserveAspectRatio="none"
    />
  ) : (
    <foreignObject x={x} y={y} width={width} height={height}>
      <canvas width={source.width} height={source.height} ref={(canvas) => paint(canvas, source)} />
    </foreignObject>
  );

// What `make` draws, drawn once for an owner (a figure's data or a part of it) and a name; a page
// skips a part of a picture that is the very same as before.
const keeps = new WeakMap();
export function kept(owner, name, make) {
  if (!keeps.has(owner)) keeps.set(owner, new Map());
  const all = keeps.get(owner);
  if (!all.has(name)) {
    if (all.size >= 40) all.delete(all.keys().next().value);
    all.set(name, make());
  }
  return all.get(name);
}

// Something to take hold of, by mouse, finger or arrow keys. It moves the state's `x` and, if there
// is one, `y`: each `{key, value, min, max, step}`; `box` is that of the axes. In print, and where
// nothing runs, its children are drawn and it is no handle.
export function Handle({ name, label, box, x, y, text, set, children }) {
  if (!set) return <g>{children}</g>;
  const { vx, vy } = scales(box);
  const to = (axis, value) => {
    const stepped = axis.min + Math.round((value - axis.min) / axis.step) * axis.step;
    return { [axis.key]: Number(Math.min(Math.max(stepped, axis.min), axis.max).toPrecision(12)) };
  };
  const drag = (event) => {
    if (!(event.buttons & 1)) return;
    const svg = event.currentTarget.ownerSVGElement;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    set({ ...to(x, vx(at.x)), ...(y && to(y, vy(at.y))) });
  };
  const press = (event) => {
    const leap = event.shiftKey ? 10 : 1;
    const { key } = event;
    const across = { ArrowRight: 1, ArrowLeft: -1 }[key];
    const up = { ArrowUp: 1, ArrowDown: -1 }[key];
    const along = across ?? (y ? undefined : up);
    if (along) set(to(x, x.value + along * leap * x.step));
    else if (up && y) set(to(y, y.value + up * leap * y.step));
    else if (key === "Home" || key === "End") set(to(x, key === "Home" ? x.min : x.max));
    else return;
    event.preventDefault();
  };
  return (
    <g
      class="widget-handle"
      role="slider"
      tabindex="0"
      data-handle={name}
      aria-label={label}
      aria-valuemin={x.min}
      aria-valuemax={x.max}
      aria-valuenow={x.value}
      aria-valuetext={text}
      onPointerDown={(event) => {
        event.currentTarget.setPointerCapture(event.pointerId);
        drag(event);
      }}
      onPointerMove={drag}
      onKeyDown={press}
    >
      {children}
    </g>
  );
}
