// Arrays from Python: {"$array": base64, "dtype": ..., "shape": [...]}; a scaled one has
// "lowest" and "step", and stands for lowest + step * code.
const TYPES = { f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, u2: Uint16Array, i1: Int8Array, u1: Uint8Array };
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const CODES = new Uint8Array(128);
for (let n = 0; n < 64; n++) CODES[LETTERS.charCodeAt(n)] = n;

function bytes(base64) {
  const length = Math.floor((base64.replace(/=+$/, "").length * 3) / 4);
  const out = new Uint8Array(length + 3);
  for (let i = 0, j = 0; i < base64.length; i += 4, j += 3) {
    const [a, b, c, d] = [0, 1, 2, 3].map((k) => CODES[base64.charCodeAt(i + k) & 127]);
    out[j] = (a << 2) | (b >> 4);
    out[j + 1] = (b << 4) | (c >> 2);
    out[j + 2] = (c << 6) | d;
  }
  return out.subarray(0, length);
}

export function base64(data) {
  if (typeof btoa === "function") {
    let text = "";
    for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
    return btoa(text);
  }
  const out = [];
  for (let i = 0; i < data.length; i += 3) {
    const [a, b = 0, c = 0] = data.subarray(i, i + 3);
    const letters = LETTERS[a >> 2] + LETTERS[((a & 3) << 4) | (b >> 4)] + LETTERS[((b & 15) << 2) | (c >> 6)] + LETTERS[c & 63];
    out.push(i + 1 < data.length ? (i + 2 < data.length ? letters : `${letters.slice(0, 3)}=`) : `${letters.slice(0, 2)}==`);
  }
  return out.join("");
}

function array({ $array, dtype, shape, lowest, step }) {
  const raw = bytes($array);
  let data = new TYPES[dtype](raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
  if (step !== undefined) data = Float64Array.from(data, (code) => lowest + step * code);
  return { data, shape };
}

// The value with every array in it unpacked, as {data, shape}.
export function unpack(value) {
  if (Array.isArray(value)) return value.map(unpack);
  if (value === null || typeof value !== "object") return value;
  if ("$array" in value) return array(value);
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, unpack(part)]));
}

// The rows of a table [n, m], as plain lists.
export function rows({ data, shape: [n, m] }) {
  return Array.from({ length: n }, (_, i) => Array.from(data.subarray(i * m, (i + 1) * m)));
}
