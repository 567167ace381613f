// tangled/diffusion/ddim.py, and what its sampler makes of data from N(0, 1).
import { schedule_named } from "./schedule.js";

// To the nearest whole number, from the middle to the even one, as Python does it.
const round = (x) => {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.floor(x + 0.5);
};

export function step_list(T, n, spacing = "linspace") {
  const found = Array.from({ length: n }, (_, i) =>
    spacing === "trailing" ? round(T - (i * T) / n) : 1 + round(((T - 1) * (n - 1 - i)) / Math.max(n - 1, 1)),
  );
  return [T, ...found.slice(1)];
}

export function ddim_sigma({ alpha_bar }, t, s, eta) {
  return eta * Math.sqrt(((1 - alpha_bar[s]) / (1 - alpha_bar[t])) * (1 - alpha_bar[t] / alpha_bar[s]));
}

export function ddim_mean(x0, xt, t, s, { signal, noise_std }, sigma = 0) {
  const eps = (xt - signal[t] * x0) / noise_std[t];
  return signal[s] * x0 + Math.sqrt(noise_std[s] ** 2 - sigma ** 2) * eps;
}

// The deviation of the sampler's x_t at each step of the list, and at last at 0. The data are
// N(0, 1), so the best guess of x_0 is a_t x_t and all that happens to x_t is a factor.
export function deviations(schedule, steps, eta) {
  let variance = 1;
  const found = [1];
  [...steps.slice(1), 0].forEach((s, i) => {
    const t = steps[i];
    const sigma = ddim_sigma(schedule, t, s, eta);
    variance = ddim_mean(schedule.signal[t], 1, t, s, schedule, sigma) ** 2 * variance + sigma ** 2;
    found.push(Math.sqrt(variance));
  });
  return found;
}

// That of the samples.
export function deviation(n, { schedule, T, spacing, eta }) {
  return deviations(schedule_named(schedule, T), step_list(T, n, spacing), eta)[n];
}

// That of n steps at equal angles, without noise.
export const equal_angles = (n) => Math.cos(Math.PI / 2 / n) ** n;
