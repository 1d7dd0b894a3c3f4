// Draws the sample pictures of the random demo model: schematic chest films, made of ellipses and noise, of nobody.
// The pictures are greyscale PNGs, written without a library.

import { deflateSync, crc32 } from "node:zlib";

function chunk(type, data) {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  const sum = Buffer.alloc(4);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, sum]);
}

/** A greyscale PNG of `pixels` (height rows of width bytes). */
export function png(width, height, pixels) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 0, 0, 0, 0], 8);
  const rows = Buffer.alloc(height * (width + 1));
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([signature, chunk("IHDR", header), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))]);
}

// A soft-edged ellipse: 1 inside, 0 outside, `soft` wide in between.
function ellipse(x, y, cx, cy, rx, ry, soft) {
  const d = Math.hypot((x - cx) / rx, (y - cy) / ry);
  return Math.min(1, Math.max(0, (1 - d) / soft + 0.5));
}

function ribs(x, y) {
  let sum = 0;
  for (let rib = 0; rib < 8; rib++) {
    const middle = 0.16 + rib * 0.085 + 0.22 * (Math.abs(x - 0.5) - 0.2) ** 2 * 4;
    sum += Math.exp(-(((y - middle) / 0.011) ** 2));
  }
  return Math.abs(x - 0.5) < 0.4 ? sum : 0;
}

/** A film of `width` x `height`; `heart` scales the heart shadow, `nodule` is [x, y, radius] in parts of the width, or null. */
export function film(width, height, { heart = 1, nodule = null, seed = 1 }) {
  let state = seed;
  const noise = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32) - 0.5;
  const pixels = Buffer.alloc(width * height);
  for (let i = 0; i < pixels.length; i++) {
    const x = (i % width) / width;
    const y = Math.floor(i / width) / height;
    const body = ellipse(x, y, 0.5, 0.66, 0.47, 0.68, 0.06);
    const lungs = Math.max(ellipse(x, y, 0.3, 0.47, 0.155, 0.33, 0.16), ellipse(x, y, 0.71, 0.47, 0.15, 0.33, 0.16));
    const heartShadow = ellipse(x, y, 0.56, 0.62, 0.14 * heart, 0.15 * heart, 0.3);
    let light = 0.05 + 0.5 * body - 0.38 * lungs * body * (1 - 0.85 * heartShadow);
    light += 0.2 * Math.exp(-(((x - 0.5) / 0.05) ** 2)) * body * (1 - 0.5 * heartShadow);
    light += 0.06 * ribs(x, y) * body * (0.3 + 0.7 * lungs);
    if (nodule) light += 0.2 * ellipse(x, y, nodule[0], nodule[1], nodule[2], (nodule[2] * width) / height, 0.6);
    pixels[i] = Math.min(255, Math.max(0, 255 * light + 12 * noise()));
  }
  return png(width, height, pixels);
}

/** The samples that stand in until a trained model brings its own. */
export const SAMPLES = [
  { path: "sample-1.png", alt: "Drawn chest film with a round opacity on one side", questions: ["Where is the nodule?"], draw: () => film(512, 600, { nodule: [0.71, 0.3, 0.035], seed: 1 }) },
  { path: "sample-2.png", alt: "Drawn chest film with a large heart shadow", questions: ["Is the heart enlarged?"], draw: () => film(512, 512, { heart: 1.45, seed: 2 }) },
  { path: "sample-3.png", alt: "Drawn chest film without a finding", questions: ["Is there an abnormality?"], draw: () => film(600, 512, { seed: 3 }) },
];
