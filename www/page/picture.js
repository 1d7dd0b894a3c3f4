// The film: the picture as decoded by the engine, the crop and the tiles that the model sees, and thumbnails of each scale. Until the engine has decoded it,
// the browser's own preview is shown, for kinds of files that look the same in both. Both have black behind transparent areas (style.css, and BACKGROUND in the
// engine).

import { startOf } from "./files.js";

const SVG = "http://www.w3.org/2000/svg";

function svgElement(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}

/** The tiles of `side` x `side` over the crop, row by row, as rectangles: the part of each that is within `width` x `height`. */
function tileRects(crop, side, { width = Infinity, height = Infinity } = {}) {
  const part = (start, edge, idx, end) => {
    const at = (line) => Math.min(Math.max(start + (line * edge) / side, 0), end);
    return [at(idx), at(idx + 1) - at(idx)];
  };
  return Array.from({ length: side * side }, (_, tileIdx) => {
    const [x, tileWidth] = part(crop.x, crop.width, tileIdx % side, width);
    const [y, tileHeight] = part(crop.y, crop.height, Math.floor(tileIdx / side), height);
    return svgElement("rect", { class: "tile", x, y, width: tileWidth, height: tileHeight });
  });
}

// JPEG, GIF, BMP, WebP, and PNG of at most 8 bits.
const SHOWN_ALIKE = /^(\xff\xd8\xff|GIF8|BM|RIFF[^]{4}WEBP|\x89PNG[^]{20}[\x01-\x08])/;
const STAND_IN_EDGE = 1600;
const THUMB_EDGE = 128; // pixels of a thumbnail, which a screen shows in at most 64 of its own units

const LATER = "This kind of file is shown when the model has read it.";
const NO_ROOM = "There is not enough memory to show this picture. The model reads it all the same.";

/** The browser's preview of a file, as a bitmap; null for formats that the engine may show differently, and for those that this browser cannot read. */
async function standIn(file) {
  try {
    if (!SHOWN_ALIKE.test(String.fromCharCode(...(await startOf(file))))) return null;
    return await createImageBitmap(file);
  } catch {
    return null;
  }
}

/** The picture, its overlay, its thumbnails and the notes about it. */
export class Picture {
  #file = null;

  /** `elements`: { film, image, overlay, noPreview, notes, thumbs }; `image` is a canvas. */
  constructor(elements) {
    this.elements = elements;
    this.levels = [];
    this.shownLevel = null;
  }

  /** Shows `file` as far as possible without the engine, or as it was shown before: `shown` is what `copy` returned. Resolves when it is shown. */
  async show(file, shown = null) {
    this.hide();
    this.#file = file;
    this.elements.film.hidden = false;
    this.#say(LATER);
    const copy = await shown;
    const bitmap = copy ? await createImageBitmap(copy) : await standIn(file);
    if (bitmap && file === this.#file) this.#draw(bitmap, Math.min(1, STAND_IN_EDGE / Math.max(bitmap.width, bitmap.height)));
    bitmap?.close();
  }

  /** A small copy of what the film shows; null if it shows nothing. */
  thumbnail() {
    const { image } = this.elements;
    if (image.hidden || !image.width) return null;
    const canvas = document.createElement("canvas");
    const scale = 96 / Math.max(image.width, image.height);
    Object.assign(canvas, { width: Math.max(1, image.width * scale), height: Math.max(1, image.height * scale) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  /** What is shown now, as a file in memory or on disk, wherever the browser puts it; null if nothing is. */
  copy() {
    const { image } = this.elements;
    return image.hidden ? Promise.resolve(null) : new Promise((resolve) => image.toBlob(resolve));
  }

  /** Removes the picture itself. */
  hide() {
    this.#file = null;
    this.unframe();
    this.#say("");
    this.elements.film.hidden = true;
    Object.assign(this.elements.image, { width: 0, height: 0 });
  }

  /** Removes crop, tiles, thumbnails and notes. */
  unframe() {
    this.#note([]);
    this.levels = [];
    this.shownLevel = null;
    this.elements.overlay.replaceChildren();
    this.elements.thumbs.replaceChildren();
  }

  /** A sentence in place of the picture; if empty, the picture. */
  #say(text) {
    this.elements.noPreview.textContent = text;
    this.elements.noPreview.hidden = !text;
    this.elements.image.hidden = Boolean(text);
  }

  #draw(bitmap, scale = 1) {
    const { image } = this.elements;
    Object.assign(image, { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
    const context = image.getContext("2d");
    context.imageSmoothingQuality = "high";
    if (bitmap instanceof ImageData) context.putImageData(bitmap, 0, 0);
    else context.drawImage(bitmap, 0, 0, image.width, image.height);
    this.#say("");
  }

  #note(notes) {
    this.elements.notes.textContent = notes.join(" ");
    this.elements.notes.hidden = notes.length === 0;
  }

  /**
   * Draws what the engine has decoded: `frame` is what the client's `chat` passes to `onPicture`, `scales` are the model's, ascending, `tile` is its tile size.
   */
  frame(frame, scales, tile) {
    const { width, height, crop, notes = [], view } = frame;
    this.#note(notes);
    this.elements.film.hidden = false;
    if (view) this.#draw(view);
    else if (this.elements.image.hidden) this.#say(NO_ROOM);
    const { overlay, thumbs } = this.elements;
    overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    overlay.replaceChildren();
    thumbs.replaceChildren();
    this.levels = scales.map((scale, levelIdx) => {
      const side = Math.ceil(scale / tile);
      const group = svgElement("g", {});
      group.style.display = "none";
      group.append(...tileRects(crop, side, frame));
      overlay.append(group);
      const small = this.#thumb(frame, scale, side, levelIdx);
      thumbs.append(small.button);
      return { side, group, ...small };
    });
    const [whole] = tileRects(crop, 1, frame);
    whole.setAttribute("class", "crop");
    overlay.append(whole);
    this.select(null);
  }

  /** The crop that the model's square shows. */
  #small({ width, crop, padding }) {
    const small = document.createElement("canvas");
    small.width = small.height = THUMB_EDGE;
    const context = small.getContext("2d");
    if (padding) {
      context.fillStyle = `rgb(${padding.join(" ")})`;
      context.fillRect(0, 0, THUMB_EDGE, THUMB_EDGE);
    }
    const { image } = this.elements;
    if (image.hidden) return small;
    context.imageSmoothingQuality = "high";
    const scale = image.width / width; // from what is shown to the picture's own pixels
    const [x, y] = [crop.x / crop.width, crop.y / crop.height].map((part) => -part * THUMB_EDGE);
    context.drawImage(image, x, y, (image.width / scale / crop.width) * THUMB_EDGE, (image.height / scale / crop.height) * THUMB_EDGE);
    return small;
  }

  #thumb(frame, scale, side, levelIdx) {
    const view = svgElement("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" });
    const rects = tileRects({ x: 0, y: 0, width: 1, height: 1 }, side);
    if (side > 1) view.append(...rects);
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const tiles = side === 1 ? "whole picture, one tile" : `${side * side} tiles`;
    button.setAttribute("aria-label", `${side === 1 ? "whole" : `${side} × ${side} tiles`}: show on the picture, ${scale} by ${scale} pixels`);
    button.title = `${scale} × ${scale} pixels, ${tiles}`;
    const caption = document.createElement("span");
    caption.textContent = side === 1 ? "whole" : `${side} × ${side} tiles`;
    const square = document.createElement("span");
    square.className = "square";
    square.append(this.#small(frame), view);
    button.append(square, caption);
    button.addEventListener("click", () => this.select(this.shownLevel === levelIdx ? null : levelIdx));
    return { button, rects };
  }

  /** Shows the grid of one scale on the picture; null for none. */
  select(levelIdx) {
    this.shownLevel = levelIdx;
    this.levels.forEach((level, i) => {
      level.group.style.display = i === levelIdx ? "" : "none";
      level.button.setAttribute("aria-pressed", String(i === levelIdx));
    });
  }

  /** Highlights the first `done` tiles, by scale; when all are done, the highlighting is removed. */
  light(done, total) {
    let first = 0;
    let current = null;
    this.levels.forEach((level, levelIdx) => {
      const n_tiles = level.side * level.side;
      const n_done = Math.min(Math.max(done - first, 0), n_tiles);
      if (n_done < n_tiles && current === null) current = levelIdx;
      for (const rects of [level.group.children, level.rects]) {
        Array.from(rects).forEach((rect, tileIdx) => {
          rect.classList.toggle("dark", done < total && tileIdx >= n_done);
          rect.classList.toggle("now", done < total && tileIdx === n_done && current === levelIdx);
        });
      }
      first += n_tiles;
    });
    this.select(done < total ? current : null);
  }
}
