// Many pictures at one moment that one chooses: rows of recorded frames, a picture in each column.
import { Picture, Pixels, Text, colour } from "../kit/index.js";

const props = {
  moments: "what one chooses: {label, texts: [what is said of each moment]}.",
  columns: "how many pictures stand beside each other.",
  views: "what there is to see: [[key, label, {rows: [{label, down, frames}, ...], numbers: [{key, label, values}, ...]}], ...]; "
    + "a frame is an address, of pictures in columns and `down` lines, and there is one for each moment.",
};

const init = ({ views }) => ({ moment: 0, view: views[0][0] });

const controls = ({ moments: { label, texts }, views }) => [
  { kind: "slider", key: "moment", label, stops: texts.map((_, n) => n), text: (n) => texts[n] },
  ...(views.length > 1 ? [{ kind: "choice", key: "view", label: "", options: views.map(([key, name]) => [key, name]) }] : []),
];

const seen = ({ views }, state) => views.find(([key]) => key === state.view)[2];

const readouts = (given, state) =>
  (seen(given, state).numbers ?? []).map(({ key, label, values }) => ({ key, label, value: values[state.moment] }));

const describe = ({ moments }, { moment }) => moments.texts[moment];

function Grid({ props: given, state, width, label }) {
  const { moments, columns } = given;
  const { rows } = seen(given, state);
  const wide = width > 500;
  const named = rows.some((row) => row.label);
  const left = named && wide ? 130 : 0;
  const side = (width - left) / columns;
  const head = named && !wide ? 20 : 0; // where the names of rows stand, if not beside them
  const gap = wide ? 6 : 4;
  let y = 22;
  const drawn = rows.map((row) => {
    const [top, down] = [y + head, row.down ?? 1];
    y = top + down * side + 2;
    const lines = Array.from({ length: down + 1 }, (_, n) => `M${left} ${top + n * side}H${width}`);
    const posts = Array.from({ length: columns + 1 }, (_, n) => `M${left + n * side} ${top}v${down * side}`);
    return (
      <g key={row.label}>
        <Pixels x={left} y={top} width={width - left} height={down * side} source={row.frames[state.moment]} />
        <path d={lines.join("") + posts.join("")} stroke={colour.paper} stroke-width={gap} />
        {named && <Text x={0} y={head ? top - 5 : top + side / 2 + 4}>{row.label}</Text>}
      </g>
    );
  });
  return (
    <Picture width={width} height={Math.ceil(y)} label={label}>
      <Text x={left + (width - left) / 2} y={13} anchor="middle" bold>{moments.texts[state.moment]}</Text>
      {drawn}
    </Picture>
  );
}

export default { name: "frame-grid", props, init, controls, readouts, describe, Picture: Grid, still: 300 };
