// What the chapter of tangled/attention/transformer.py records of a stack: {depth: [kinds, layers]}.

// The norm of a layer's gradient, counted from 1; beyond the depth there is none.
export const gradient_norm = (layer, { norms, kind, depth }) =>
  layer > depth ? Infinity : norms[depth].data[kind * depth + layer - 1];

export const log_gradient_norm = (layer, given) => Math.log10(gradient_norm(layer, given));
