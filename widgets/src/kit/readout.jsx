// Numbers in text: `{key, label, value}`, and where there are many, a `group` for each row of a table.
import { format } from "./format.js";

const Output = ({ readout }) => (
  <output data-readout={readout.key} data-value={String(readout.value)}>
    {typeof readout.value === "string" ? readout.value : format(readout.value, readout)}
  </output>
);

export function Readouts({ readouts }) {
  if (!readouts.some((readout) => readout.group)) {
    return (
      <dl class="widget-readouts">
        {readouts.map((readout) => (
          <div key={readout.key}>
            <dt>{readout.label}</dt>
            <dd><Output readout={readout} /></dd>
          </div>
        ))}
      </dl>
    );
  }
  const groups = [...new Set(readouts.map((readout) => readout.group))];
  const labels = [...new Set(readouts.map((readout) => readout.label))];
  return (
    <table class="widget-readouts">
      <thead>
        <tr>
          <th scope="col"><span class="widget-spoken">which</span></th>
          {labels.map((label) => <th key={label} scope="col">{label}</th>)}
        </tr>
      </thead>
      <tbody>
        {groups.map((group) => (
          <tr key={group}>
            <th scope="row">{group}</th>
            {readouts.filter((readout) => readout.group === group).map((readout) => (
              <td key={readout.key}><Output readout={readout} /></td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}
