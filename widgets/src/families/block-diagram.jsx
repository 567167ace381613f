// The parts of a machine and what goes from one to another. A part that one chooses tells its shapes
// and sizes, and where it is written. Places are in the picture's own units, `width` by `height`.
import { Picture, Text, colour } from "../kit/index.js";

const props = {
  width: "the room for the blocks, in units; the page's is 640.",
  height: "the room for the blocks, in units.",
  blocks: "[{key, label, x, y, width, height}, ...] in the order of calls; those that are missing `name` are called by their "
    + "label. Each may have a colour, details: [[what, text], ...], numbers: [[what, number], ...], link: [text, address].",
  arrows: "[{points: [[x, y], ...], dashed}, ...], with a head at the last point",
};

const init = ({ blocks }) => ({ block: blocks[0].key });

const called = ({ blocks }, key) => blocks.find((block) => block.key === key);
const name_of = ({ name, label }) => name ?? label;

const controls = (given) => [
  { kind: "slider", key: "block", label: "part", stops: given.blocks.map(({ key }) => key), text: (key) => called(given, key).label },
];

const readouts = (given, { block }) =>
  (called(given, block).numbers ?? []).map(([what, value]) => ({ key: what, label: what, value }));

function describe(given, { block }) {
  const chosen = called(given, block);
  return [name_of(chosen), ...(chosen.details ?? []).map(([what, text]) => `${what} ${text}`)].join(", ");
}

function Arrow({ points, dashed, scale }) {
  const at = points.map(([x, y]) => [x * scale, y * scale]);
  const [[px, py], [x, y]] = at.slice(-2);
  const long = Math.hypot(x - px, y - py) || 1;
  const [dx, dy] = [(4 * (x - px)) / long, (4 * (y - py)) / long];
  const head = `M${x - dx - dy} ${y - dy + dx}L${x} ${y}L${x - dx + dy} ${y - dy - dx}`;
  return (
    <g fill="none" stroke={colour.axis}>
      <path d={`M${at.map((point) => point.join(" ")).join("L")}`} stroke-dasharray={dashed ? "2 3" : null} />
      <path d={head} />
    </g>
  );
}

function Block({ block, chosen, scale, set }) {
  const [x, y, width, height] = [block.x, block.y, block.width, block.height].map((length) => length * scale);
  const fits = block.label.length * 7 < width;
  return (
    <g class="widget-part" data-part={block.key} onClick={set && (() => set({ block: block.key }))}>
      <rect x={x - 2} y={y - 2} width={width + 4} height={height + 4} fill={colour.paper} fill-opacity="0" />
      <rect
        x={x}
        y={y}
        width={width}
        height={height}
        rx="2"
        fill={colour[block.colour ?? "blue"]}
        fill-opacity={chosen ? 0.75 : 0.25}
        stroke={colour[block.colour ?? "blue"]}
        stroke-width={chosen ? 3 : 1}
      />
      {fits && <Text x={x + width / 2} y={y + height / 2 + 4} anchor="middle">{block.label}</Text>}
    </g>
  );
}

function Diagram({ props: given, state, set, width, label }) {
  const scale = width / given.width;
  const chosen = called(given, state.block);
  const { details = [], link } = chosen;
  const foot = given.height * scale + 18;
  const lines = Math.max(...given.blocks.map((one) => (one.details ?? []).length)); // the same room for all
  return (
    <Picture width={width} height={Math.ceil(foot + 18 * lines + 6)} label={label} handles={set}>
      {(given.arrows ?? []).map((arrow, n) => <Arrow key={n} {...arrow} scale={scale} />)}
      {given.blocks.map((block) => (
        <Block key={block.key} block={block} chosen={block === chosen} scale={scale} set={set} />
      ))}
      <Text x={0} y={foot} bold>{name_of(chosen)}</Text>
      {link && (
        <a href={link[1]}>
          <text x={width} y={foot + 18 * lines} text-anchor="end" fill={colour.blue} text-decoration="underline">{link[0]}</text>
        </a>
      )}
      {details.map(([what, text], n) => (
        <g key={what}>
          <Text x={0} y={foot + 18 * (n + 1)} fill={colour.axis}>{what}</Text>
          <Text x={width > 500 ? 110 : 80} y={foot + 18 * (n + 1)}>{text}</Text>
        </g>
      ))}
    </Picture>
  );
}

export default { name: "block-diagram", props, init, controls, readouts, describe, Picture: Diagram };
