// Conversations kept on this device, only if the user asks for it: a folder in the browser's own file system (OPFS), with a text file for each conversation
// and, if wanted, one for its picture. The folder's existence is the setting.

const FOLDER = "llama3med conversations";
const SETTINGS = "settings.json";

/** Whether this browser can keep them. */
export const canKeep = () => Boolean(navigator.storage?.getDirectory && globalThis.FileSystemFileHandle?.prototype.createWritable);

async function write(folder, name, content) {
  const file = await folder.getFileHandle(name, { create: true });
  const writable = await file.createWritable();
  await writable.write(content);
  await writable.close();
}

const read = async (folder, name) => (await folder.getFileHandle(name)).getFile();

/** The folder. */
export class Kept {
  constructor(folder, withPictures) {
    Object.assign(this, { folder, withPictures });
  }

  /** The setting of an earlier visit; null if nothing is kept. */
  static async find() {
    if (!canKeep()) return null;
    try {
      const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle(FOLDER);
      return new Kept(folder, JSON.parse(await (await read(folder, SETTINGS)).text()).withPictures);
    } catch {
      return null;
    }
  }

  static async start(withPictures) {
    const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle(FOLDER, { create: true });
    await write(folder, SETTINGS, JSON.stringify({ withPictures }));
    return new Kept(folder, withPictures);
  }

  /** Deletes everything that was kept. */
  static async end() {
    await (await navigator.storage.getDirectory()).removeEntry(FOLDER, { recursive: true });
  }

  /** All conversations, latest first. One that cannot be read is left out, but not deleted. */
  async load() {
    const talks = [];
    for await (const name of this.folder.keys()) {
      if (name === SETTINGS || !name.endsWith(".json")) continue;
      const file = await read(this.folder, `${name.slice(0, -5)}.picture`).catch(() => null);
      const talk = await read(this.folder, name).then((words) => words.text()).then(JSON.parse).catch(() => null);
      if (talk) talks.push({ ...talk, file });
    }
    return talks.sort((a, b) => b.at - a.at);
  }

  /** Keeps a conversation in its current state. */
  async save({ id, at, modelName, sample, record, entries, file }) {
    const words = entries.map(({ divider, question, text, reason, print, at }) => ({ divider, question, text, reason, print, at }));
    await write(this.folder, `${id}.json`, JSON.stringify({ id, at, modelName, sample, record, hadPicture: Boolean(file), entries: words }));
    if (file && this.withPictures) await write(this.folder, `${id}.picture`, file);
  }

  async remove(id) {
    for (const name of [`${id}.json`, `${id}.picture`]) await this.folder.removeEntry(name).catch(() => {});
  }
}
