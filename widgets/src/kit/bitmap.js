// Pixels as an address that browsers and print read: an uncompressed bitmap, 24 bits a pixel.
import { base64 } from "./arrays.js";

// `at(channel, place)` gives the level, 0 to 255, of a channel (red, green, blue) at a place, by rows.
export function bitmap(width, height, at) {
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
      for (let channel = 2; channel >= 0; channel--) {
        const level = at(channel, place);
        file[to++] = level < 0 ? 0 : level > 255 ? 255 : level + 0.5;
      }
    }
  }
  return `data:image/bmp;base64,${base64(file)}`;
}
