// tangled/diffusion/schedule.py: noise schedules, tables with one entry for t = 0..T.

const linspace = (start, end, n) => {
  // As torch does it: from both ends, so that the last value is exactly `end`.
  const step = (end - start) / (n - 1);
  return Array.from({ length: n }, (_, i) => (n === 1 ? start : i < n / 2 ? start + i * step : end - (n - 1 - i) * step));
};

const makers = {
  linear: (T) => linspace(1e-4, 0.02, T),
  scaled_linear: (T) => linspace(Math.sqrt(0.00085), Math.sqrt(0.012), T).map((root) => root ** 2),
  sigmoid: (T) => linspace(-6, 6, T).map((x) => 1e-4 + (0.02 - 1e-4) / (1 + Math.exp(-x))),
  cosine: (T) => {
    const f = (t) => Math.cos((((t / T + 0.008) / 1.008) * Math.PI) / 2) ** 2;
    return Array.from({ length: T }, (_, i) => Math.min(1 - f(i + 1) / f(i), 0.999));
  },
};

const made = {};

export function schedule_named(name, T) {
  return (made[`${name} ${T}`] ??= tables([0, ...makers[name](T)]));
}

export function tables(beta) {
  let power = 1;
  const alpha_bar = beta.map((b) => (power *= 1 - b));
  const signal = alpha_bar.map(Math.sqrt);
  const noise_std = alpha_bar.map((a) => Math.sqrt(1 - a));
  const snr = alpha_bar.map((a) => a / (1 - a));
  const rho = noise_std.map((std, t) => std / signal[t]);
  const half_log_snr = snr.map((ratio) => Math.log(ratio) / 2);
  return { beta, alpha_bar, signal, noise_std, snr, rho, half_log_snr, phi: rho.map(Math.atan) };
}

// The entry t of a table of a schedule.
export const entry = (t, { schedule, T, table }) => schedule_named(schedule, T)[table][t];
