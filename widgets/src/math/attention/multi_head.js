// tangled/attention/multi_head.py, for one sequence: lists of rows, weights as nn.Linear keeps them.
import { attention_scores, attention_weights, averages, visible } from "./scaled_dot_product.js";

// The rows of x by a matrix {data, shape: [out, in]}, and a shift if there is one.
export const linear = (x, { data, shape: [out, width] }, bias) =>
  x.map((row) => {
    const y = new Array(out);
    for (let o = 0, at = 0; o < out; o++) {
      let sum = bias ? bias.data[o] : 0;
      for (let i = 0; i < width; i++) sum += data[at++] * row[i];
      y[o] = sum;
    }
    return y;
  });

// The columns of x that belong to a head.
export function head(x, r, heads) {
  const width = x[0].length / heads;
  return x.map((row) => row.slice(r * width, (r + 1) * width));
}

// The weights of each head [heads, n, n], and what the layer gives out [n, d].
export function multi_head({ w_q, w_k, w_v, w_o }, heads, x, causal) {
  const [q, k, v] = [w_q, w_k, w_v].map((matrix) => linear(x, matrix));
  const mask = visible(x.length, x.length, causal);
  const weights = Array.from({ length: heads }, (_, r) =>
    attention_weights(attention_scores(head(q, r, heads), head(k, r, heads)), mask),
  );
  const outputs = weights.map((shares, r) => averages(shares, head(v, r, heads)));
  const merged = x.map((_, i) => outputs.flatMap((rows) => rows[i]));
  return { weights, output: linear(merged, w_o) };
}

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;

// A head's mean weight on the place before; NaN if there is one place only.
export const previous_score = (weights) => mean(weights.slice(1).map((row, i) => row[i]));

// A head's mean weight on what followed the token before; NaN if no token comes again.
export const induction_score = (weights, tokens) =>
  mean(
    weights.flatMap((row, i) => {
      let [sum, again] = [0, false];
      for (let j = 0; j < i; j++) {
        if (tokens[j] !== tokens[i]) continue;
        sum += row[j + 1];
        again = true;
      }
      return again ? [sum] : [];
    }),
  );

// What a head does with a text, by its two scores: a pattern that has half of its weight.
export function pattern(previous, induction) {
  if (previous >= 0.5 && !(induction > previous)) return "letter before";
  return induction >= 0.5 ? "what followed" : "mixed";
}

// The letters by their numbers; a space is 0.
export const SIGNS = "␣abcdefghijklmnopqrstuvwxyz";

// The numbers of a text; what is no letter is a space, and so is an empty text.
export const encode = (text, longest) =>
  [...(text || " ")].slice(0, longest).map((sign) => Math.max(SIGNS.indexOf(sign.toLowerCase()), 0));
