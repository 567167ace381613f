// tangled/attention/positions.py: the clock that tells rows their places.

// How far each hand turns from a place to the next, in radians.
export const frequencies = (width, base = 10000) =>
  Array.from({ length: width / 2 }, (_, j) => base ** ((-2 * j) / width));

// A row for each place: the sine and the cosine of each hand, side by side.
export const sinusoidal = (places, width, base = 10000) => {
  const hands = frequencies(width, base);
  return places.map((place) => hands.flatMap((hand) => [Math.sin(place * hand), Math.cos(place * hand)]));
};
