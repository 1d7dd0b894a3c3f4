// Pictures in formats that the engine cannot read but this browser can (AVIF, SVG; HEIC and JPEG XL in Safari): drawn here, and written as a PNG that the
// engine reads like any other. Transparent areas stay transparent: the engine decides what is behind them.

/** The note that the model sees the browser's rendering of the file. */
export const REDRAWN = "This browser decoded the file.";

/**
 * The picture as the bytes of a PNG, or null if this browser cannot show it either.
 * @param {Blob|ArrayBuffer|Uint8Array} image
 * @param {boolean} isSvg  browsers recognise SVG only by its type
 * @returns {Promise<ArrayBuffer|null>}
 */
export async function redraw(image, isSvg) {
  const blob = new Blob([image], isSvg ? { type: "image/svg+xml" } : {});
  try {
    return await (globalThis.document ? drawElement(blob) : drawBitmap(blob));
  } catch {
    return null;
  }
}

/** As the page shows it, upright. */
async function drawElement(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
    return await toPng(image, image.naturalWidth, image.naturalHeight);
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

/** For workers, which have no elements; cannot decode SVG. */
async function drawBitmap(blob) {
  const bitmap = await createImageBitmap(blob);
  try {
    return await toPng(bitmap, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}

async function toPng(image, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(image, 0, 0, width, height);
  return (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer();
}
