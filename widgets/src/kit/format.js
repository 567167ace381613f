// Numbers as readers see them.
const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

// Three digits that count; what grew beyond all bounds is said to have diverged.
export function format(value, { digits = 3, infinite = "diverged" } = {}) {
  if (Number.isNaN(value)) return "diverged";
  if (Math.abs(value) > 1e12) return infinite;
  if (Number.isInteger(value) && Math.abs(value) < 1e5) return minus(String(value));
  const size = Math.abs(value);
  if (size >= 10 ** digits && size < 1e5) return minus(value.toFixed(0));
  if (size >= 1e-3 && size < 1e5) return minus(value.toPrecision(digits));
  const [head, power] = value.toExponential(digits - 1).split("e");
  return `${minus(head)}·10${[...power.replace("+", "")].map((sign) => RAISED[sign]).join("")}`;
}

// A number on an axis.
export const tick = (value) => minus(String(value));

const minus = (text) => text.replace("-", "−");

// About `count` round numbers between two ends.
export function ticks([from, to], count = 5) {
  const rough = (to - from) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough * 0.999);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
}
