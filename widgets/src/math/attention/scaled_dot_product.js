// tangled/attention/scaled_dot_product.py, for one head: lists of rows.

export const attention_scores = (q, k, scale = q[0].length ** -0.5) =>
  q.map((row) => k.map((key) => scale * row.reduce((sum, part, i) => sum + part * key[i], 0)));

// Which of m keys the last n places may read.
export const visible = (n, m, causal, window = null) =>
  Array.from({ length: n }, (_, i) =>
    Array.from({ length: m }, (_, j) => {
      const place = m - n + i;
      return !causal || (j <= place && (window === null || j > place - window));
    }),
  );

// The softmax of each row over the keys that it may read; a row that may read none is 0.
export const attention_weights = (scores, mask) =>
  scores.map((row, i) => {
    const top = Math.max(...row.filter((_, j) => mask[i][j]));
    const powers = row.map((score, j) => (mask[i][j] ? Math.exp(score - top) : 0));
    const total = powers.reduce((sum, power) => sum + power, 0);
    return powers.map((power) => (total > 0 ? power / total : 0));
  });

export const entropy = (p) => p.reduce((sum, share) => sum - (share > 0 ? share * Math.log(share) : 0), 0);

// What each row of weights makes of the values.
export const averages = (weights, v) =>
  weights.map((row) => {
    const mean = v[0].map(() => 0);
    for (let j = 0; j < row.length; j++) {
      for (let part = 0; part < mean.length; part++) mean[part] += row[j] * v[j][part];
    }
    return mean;
  });
