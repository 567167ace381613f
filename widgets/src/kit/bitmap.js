// Pixels that were computed: a canvas paints them; an address of them, an uncompressed bitmap of 24
// bits a pixel, is read by print.
import { base64 } from "./arrays.js";

// `at(channel, place)` gives the level, 0 to 255, of a channel (red, green, blue) at a place, by rows.
export function bitmap(width, height, at) {
  const data = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let place = 0; place < width * height; place++) {
    for (let channel = 0; channel < 3; channel++) {
      const level = at(channel, place);
      data[4 * place + channel] = level < 0 ? 0 : level > 255 ? 255 : (level + 0.5) | 0;
    }
  }
  return { width, height, data };
}

export function encoded({ width, height, data }) {
  const stride = (width * 3 + 3) & ~3;
  const file = new Uint8Array(54 + stride * height);
  const view = new DataView(file.buffer);
  file.set([66, 77]);
  const head = { 2: file.length, 10: 54, 14: 40, 18: width, 22: height, 34: stride * height };
  for (const [offset, value] of Object.entries(head)) view.setUint32(Number(offset), value, true);
  view.setUint16(26, 1, true);
  view.setUint16(28, 24, true);
  for (let row = 0; row < height; row++) {
    let to = 54 + (height - 1 - row) * stride;
    for (let place = row * width; place < (row + 1) * width; place++) {
      for (let channel = 2; channel >= 0; channel--) file[to++] = data[4 * place + channel];
    }
  }
  return `data:image/bmp;base64,${base64(file)}`;
}

// In software: an image that is decoded anew, or a layer of its own, costs a long page more.
export function paint(canvas, { width, height, data }) {
  if (!canvas || canvas.painted === data) return;
  canvas.painted = data;
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(new ImageData(data, width, height), 0, 0);
}
