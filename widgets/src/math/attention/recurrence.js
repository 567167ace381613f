// tangled/attention/recurrence.py: the soft lookup, for lists of scores and rows of values.

export function lookup_weights(scores, temperature = 1) {
  const top = Math.max(...scores);
  const powers = scores.map((score) => Math.exp((score - top) / temperature));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

// What each row of scores gets: the mean of the values, by its weights.
export const soft_lookup = (scores, values, temperature = 1) =>
  scores.map((row) => {
    const weights = lookup_weights(row, temperature);
    return values[0].map((_, part) => weights.reduce((sum, weight, j) => sum + weight * values[j][part], 0));
  });
