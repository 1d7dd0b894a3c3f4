// The film: the preview of the opened file, the crop and the tiles that the model sees, and the small pictures of each scale.
// The browser only shows the file here; what the model computes with is decoded and resized by the engine. Behind transparent parts both have black
// (style.css, and BACKGROUND in the engine).

const SVG = "http://www.w3.org/2000/svg";

function svgElement(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}

/** The tiles of `side` x `side` over the crop, row by row, as rectangles. */
function tileRects(crop, side) {
  const width = crop.width / side;
  const height = crop.height / side;
  return Array.from({ length: side * side }, (_, tileIdx) =>
    svgElement("rect", { class: "tile", width, height, x: crop.x + (tileIdx % side) * width, y: crop.y + Math.floor(tileIdx / side) * height }));
}

const NO_PREVIEW = "This browser cannot show this kind of file.";

/** The preview, its overlay, its thumbnails and what is to be known of it. */
export class Picture {
  /** `elements`: { film, image, overlay, noPreview, notes, thumbs }. */
  constructor(elements) {
    this.elements = elements;
    this.url = null;
    this.levels = [];
    this.shownLevel = null;
    elements.image.addEventListener("error", () => this.#preview(false));
    elements.image.addEventListener("load", () => this.#preview(true));
  }

  #preview(visible) {
    this.elements.image.hidden = !visible;
    this.elements.noPreview.hidden = visible;
    this.loaded?.();
  }

  /** Shows `file`; resolves when the browser has read it, or has found that it cannot. */
  async show(file) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(file);
    this.unframe();
    this.elements.film.hidden = false;
    this.loaded?.(); // whoever waits for the file before this one
    const loaded = new Promise((resolve) => (this.loaded = resolve));
    this.elements.image.src = this.url;
    await loaded;
  }

  /** A small copy of what the film shows; null where it shows nothing. */
  thumbnail() {
    const shown = this.elements.film.querySelector("canvas:not([hidden]), img:not([hidden])");
    const [width, height] = shown ? [shown.naturalWidth ?? shown.width, shown.naturalHeight ?? shown.height] : [0, 0];
    if (!width || !height) return null;
    const canvas = document.createElement("canvas");
    const scale = 96 / Math.max(width, height);
    Object.assign(canvas, { width: Math.max(1, width * scale), height: Math.max(1, height * scale) });
    canvas.getContext("2d").drawImage(shown, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  /** Takes the picture itself away. */
  hide() {
    this.unframe();
    this.loaded?.();
    this.elements.film.hidden = true;
    this.elements.image.removeAttribute("src");
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
  }

  /** Takes crop, tiles, thumbnails and notes away. */
  unframe() {
    this.elements.noPreview.textContent = NO_PREVIEW;
    this.#note([]);
    this.levels = [];
    this.shownLevel = null;
    this.elements.overlay.replaceChildren();
    this.elements.thumbs.replaceChildren();
  }

  /** What is known before the engine has looked: the middle square of the picture. */
  guess() {
    const { naturalWidth: width, naturalHeight: height } = this.elements.image;
    if (!width || !height || this.elements.image.hidden) return null;
    const side = Math.min(width, height);
    return { width, height, crop: { x: (width - side) / 2, y: (height - side) / 2, width: side, height: side } };
  }

  #note(notes) {
    this.elements.notes.textContent = notes.join(" ");
    this.elements.notes.hidden = notes.length === 0;
  }

  /** Draws crop and tiles: `frame` is { width, height, crop }, and { notes } from the engine, `scales` the model's, ascending, `tile` its tile size. */
  frame({ width, height, crop, notes }, scales, tile) {
    if (notes) {
      this.elements.noPreview.textContent = `${NO_PREVIEW} The model reads it all the same.`;
      this.#note(notes);
    }
    const { overlay, thumbs } = this.elements;
    const pressed = this.shownLevel;
    overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    overlay.replaceChildren();
    thumbs.replaceChildren();
    this.levels = scales.map((scale, levelIdx) => {
      const side = Math.ceil(scale / tile);
      const group = svgElement("g", {});
      group.style.display = "none";
      group.append(...tileRects(crop, side));
      overlay.append(group);
      const small = this.#thumb({ width, height, crop }, scale, side, levelIdx);
      thumbs.append(small.button);
      return { side, group, ...small };
    });
    overlay.append(svgElement("rect", { class: "crop", ...crop }));
    this.select(pressed);
  }

  #thumb({ width, height, crop }, scale, side, levelIdx) {
    const view = svgElement("svg", { viewBox: `${crop.x} ${crop.y} ${crop.width} ${crop.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    view.append(svgElement("image", { href: this.url, x: 0, y: 0, width, height, preserveAspectRatio: "none" }));
    const rects = tileRects(crop, side);
    if (side > 1) view.append(...rects);
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const tiles = side === 1 ? "whole picture, one tile" : `${side * side} tiles`;
    button.setAttribute("aria-label", `${side === 1 ? "whole" : `${side} × ${side} tiles`}: show on the picture, ${scale} by ${scale} pixels`);
    button.title = `${scale} × ${scale} pixels, ${tiles}`;
    const caption = document.createElement("span");
    caption.textContent = side === 1 ? "whole" : `${side} × ${side} tiles`;
    button.append(view, caption);
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

  /** Lights the first `done` tiles, scale by scale; when all are done the picture is left alone. */
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
