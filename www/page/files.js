// Files that the user chooses, drops or pastes; folders are expanded. The first bytes decide what is a picture and what is a model: medical files often have no
// extension, downloads are renamed ("… (1).gguf"), and some programs name their files by hash.

const MAX_FILES = 2000; // that are examined
const MAX_PICTURES = 20; // that are accepted at once
const MAX_DEPTH = 16; // of folders within folders

// The engine says what a file is (picture/sniff.rs), but it may not have arrived yet, or be busy.
// PNG, JPEG, GIF, BMP, TIFF and BigTIFF, WebP, HEIC and AVIF, DICOM.
const PICTURE = /^(\x89PNG|\xff\xd8\xff|GIF8|BM[^]{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF[^]{4}WEBP|[^]{4}ftyp|[^]{128}DICM)/;
const START_BYTES = 132;

/**
 * All files of a drop or a paste, and what could not be read. Must be called in the event's handler, before anything is awaited: the browser empties `transfer`
 * when the event is over.
 * @param {DataTransfer} transfer
 * @returns {Promise<{ files: File[], n_folders: number, unreadable: { name: string, error: unknown }[] }>} files sorted by name
 */
export async function filesOf(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const dropped = items.map((item) => ({ file: item.getAsFile(), folder: folderOf(item) }));
  const found = { files: [], n_folders: 0, unreadable: [] };
  for (const { file, folder } of dropped) {
    if (folder) await walk(folder, found, 0);
    else if (file) found.files.push(file);
  }
  return found;
}

/** The dropped folder, if it is one: a browser also presents it as a file, which cannot be read. */
function folderOf(item) {
  const entry = item.webkitGetAsEntry?.();
  return entry?.isDirectory ? entry : null;
}

async function walk(folder, found, depth) {
  found.n_folders++;
  try {
    const entries = (await entriesOf(folder)).filter(({ name }) => !name.startsWith("."));
    entries.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    for (const entry of entries) {
      if (found.files.length >= MAX_FILES) return;
      if (!entry.isDirectory) await take(entry, found);
      else if (depth < MAX_DEPTH) await walk(entry, found, depth + 1);
    }
  } catch (error) {
    found.unreadable.push({ name: folder.name, error });
  }
}

// A folder's reader returns its entries in batches, the last of them empty.
async function entriesOf(folder) {
  const reader = folder.createReader();
  const entries = [];
  while (entries.length < MAX_FILES) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (batch.length === 0) break;
    entries.push(...batch);
  }
  return entries;
}

async function take(entry, found) {
  try {
    found.files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
  } catch (error) {
    found.unreadable.push({ name: entry.name, error });
  }
}

/**
 * Which files belong to a model, in their order.
 * @returns {Promise<{ models: File[], others: File[] }>}  a file named .gguf that is not one counts as a model's: an error will say what it is
 */
export async function sortFiles(files) {
  const areModels = await Promise.all(files.map(async (file) => /\.gguf$/i.test(file.name) || (await isGguf(file))));
  return { models: files.filter((_, idx) => areModels[idx]), others: files.filter((_, idx) => !areModels[idx]) };
}

async function isGguf(file) {
  try {
    return (await file.slice(0, 4).text()) === "GGUF";
  } catch {
    return false; // a folder or an unreadable file: opening it reports the error
  }
}

/** Which of several files were used, for the user; empty if there is no doubt. */
export function choiceText({ models, others }) {
  const names = (files) => files.map(({ name }) => name).join(", ");
  if (others.length === 0 || models.length === 0) return "";
  return `Used: ${names(models)}. Not used, for ${others.length === 1 ? "it is not a GGUF file" : "they are not GGUF files"}: ${names(others)}.`;
}

/**
 * Which of the files to open: a single one whatever it is, otherwise the pictures.
 * @param {{ files: File[], n_folders: number, unreadable: { name: string, error: unknown }[] }} found  of `filesOf`
 * @returns {Promise<{ pictures?: File[], remark?: string, problem?: { title: string, next: string, details: string } }>} `remark` says what happened to the
 * others; `problem` is why none can be opened
 */
export async function choosePictures({ files, n_folders, unreadable }) {
  if (files.length === 1 && n_folders === 0) return { pictures: files };
  const pictures = [];
  const lost = [...unreadable];
  for (const file of files) {
    try {
      if (await isPicture(file)) pictures.push(file);
    } catch (error) {
      lost.push({ name: file.name, error });
    }
  }
  const lostText = lost.length === 0 ? "" : lost.length === 1 ? `${lost[0].name} could not be read.` : `${lost[0].name} and ${lost.length - 1} more could not be read.`;
  if (pictures.length > 0) {
    const rest = pictures.length > MAX_PICTURES ? `; the first ${MAX_PICTURES} are under Conversations, the others were not taken.` : "; the others wait under Conversations.";
    const countText = pictures.length > 1 ? `Opened ${pictures[0].name}, the first of ${pictures.length} pictures${rest}` : "";
    return { pictures: pictures.slice(0, MAX_PICTURES), remark: [countText, lostText].filter(Boolean).join(" ") };
  }
  const title = `There is no picture ${n_folders > 0 ? "in this folder" : "among these files"}.`;
  const details = [`${files.length} files were examined`, ...lost.map(({ name, error }) => `${name}: ${error?.message ?? error}`)].join("\n");
  return { problem: { title, next: [lostText, "Open a picture."].filter(Boolean).join(" "), details } };
}

async function isPicture(file) {
  const start = await startOf(file);
  return file.type.startsWith("image/") || /\.(dcm|dicom)$/i.test(file.name) || PICTURE.test(String.fromCharCode(...start));
}

/** Whether a file starts like a picture that the engine or this browser may be able to read. */
export async function looksLikePicture(file) {
  const start = String.fromCharCode(...(await startOf(file)));
  return PICTURE.test(start) ? start.slice(128) !== "DICM" : file.type.startsWith("image/") && file.size > 0;
}

/** The first bytes of a file; an error if it cannot be read. */
export async function startOf(file) {
  // A browser may treat a deleted file as an empty one, until all of it is read.
  const part = file.size === 0 ? file : file.slice(0, START_BYTES);
  return new Uint8Array(await part.arrayBuffer());
}

/**
 * The text of a paste; empty if it only names the pasted files, as file managers do.
 * @param {DataTransfer} transfer
 */
export function textOf(transfer) {
  const text = transfer.getData("text/plain");
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const names = [...transfer.files].flatMap(({ name }) => [name, encodeURIComponent(name)]);
  const namesFile = (line) => names.some((name) => line === name || line.endsWith(`/${name}`) || line.endsWith(`\\${name}`));
  return lines.every(namesFile) ? "" : text;
}
