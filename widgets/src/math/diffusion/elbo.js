// tangled/diffusion/elbo.py, for one number.

// Mean and variance of q(x_{t-1} | x_t, x_0).
export function posterior(x0, xt, t, { beta, signal, alpha_bar }) {
  const [before, after] = [1 - alpha_bar[t - 1], 1 - alpha_bar[t]];
  const mean = (signal[t - 1] * beta[t] * x0 + Math.sqrt(1 - beta[t]) * before * xt) / after;
  return { mean, variance: (before / after) * beta[t] };
}

// What x_0 alone says about x_{t-1}, and what x_t alone says: a bell, as a function of x_{t-1}.
export const from_data = (x0, t, { signal, alpha_bar }) => ({ mean: signal[t - 1] * x0, variance: 1 - alpha_bar[t - 1] });
export const from_noisy = (xt, t, { beta }) => ({ mean: xt / Math.sqrt(1 - beta[t]), variance: beta[t] / (1 - beta[t]) });

// Of the recorded terms L_0, ..., L_T: one of them, its share of the bound, and what those from T
// down to t add up to.
export const bound_term = (t, { terms }) => terms.data[t];
export const bound_from = (t, { terms }) => terms.data.slice(t).reduce((sum, term) => sum + term, 0);
export const bound_share = (t, { terms }) => terms.data[t] / bound_from(0, { terms });
