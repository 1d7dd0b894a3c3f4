// Pictures of formats that the engine does not read and this browser does (AVIF, SVG; HEIC and JPEG XL in Safari): drawn here, and written as a PNG that the engine
// reads as it would any other. Transparent parts stay transparent: what is behind them is the engine's affair.

/** Says that the model sees what the browser has made of the file. */
export const REDRAWN = "This browser decoded the file.";

/**
 * The picture as the bytes of a PNG, or null where this browser cannot show it either.
 * @param {Blob|ArrayBuffer|Uint8Array} image
 * @param {boolean} isSvg  browsers read SVG by its type alone
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

/** In a worker, which has no elements; it knows no SVG. */
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
