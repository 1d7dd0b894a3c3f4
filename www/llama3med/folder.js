// A model's folder in the browser's own file system (OPFS): the manifest, and each chunk under its sha256, so that unchanged chunks survive a changed manifest.
// A chunk is stored after its hash has been checked: it is written under a temporary name and renamed once it is complete and on disk. So a file with a chunk's
// name is that chunk, and is not hashed again at every load. Runs in the store worker; for reading also in the ranks; for counting and deleting also in the
// page. Without a secure context, in some private windows and in some engines there is no such file system, or it cannot rename files: then `open` returns
// null.

const ROOT = "llama3med";
const MANIFEST = "manifest.json";
// Another tab that loads the same model keeps it for both; a session that was just closed releases the lock shortly after.
const LOCK_WAIT_MS = 2000;

/** The name of a model's folder. Needs `crypto.subtle`, which exists wherever OPFS does. */
async function nameOf(manifestUrl) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(manifestUrl));
  return hex(digest).slice(0, 32);
}

/** Bytes as lower-case hexadecimal digits. */
export function hex(buffer) {
  return Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** One model's folder. */
export class Folder {
  /**
   * @param {FileSystemDirectoryHandle} directory
   * @param {boolean} isOurs  Whether this worker may write; another one may already be writing.
   */
  constructor(directory, isOurs) {
    Object.assign(this, { directory, isOurs });
  }

  /** The folder of the model at `manifestUrl`, for reading and writing, for as long as this worker lives; null if nothing can be kept. */
  static async open(manifestUrl) {
    try {
      const name = await nameOf(manifestUrl);
      const root = await navigator.storage.getDirectory();
      const models = await root.getDirectoryHandle(ROOT, { create: true });
      const directory = await models.getDirectoryHandle(name, { create: true });
      const { prototype } = FileSystemFileHandle;
      const canWrite = "move" in prototype && ("createSyncAccessHandle" in prototype || "createWritable" in prototype);
      return canWrite ? new Folder(directory, await lock(`${ROOT} folder ${name}`)) : null;
    } catch {
      return null;
    }
  }

  /** The folder of the model at `manifestUrl`, for reading only; null if there is none. */
  static async peek(manifestUrl) {
    try {
      const root = await navigator.storage.getDirectory();
      const models = await root.getDirectoryHandle(ROOT);
      return new Folder(await models.getDirectoryHandle(await nameOf(manifestUrl)), false);
    } catch {
      return null;
    }
  }

  /** Deletes the folder of the model at `manifestUrl`, if there is one. */
  static forget(manifestUrl) {
    return remove(async (root) => (await root.getDirectoryHandle(ROOT)).removeEntry(await nameOf(manifestUrl), { recursive: true }));
  }

  /** Deletes the folders of all models. */
  static forgetAll() {
    return remove((root) => root.removeEntry(ROOT, { recursive: true }));
  }

  /** The bytes of the last kept manifest; null if there is none. */
  async manifest() {
    const file = await this.#file(MANIFEST);
    return file ? new Uint8Array(await file.arrayBuffer()) : null;
  }

  /** Keeps the manifest: from now on its model opens without a network. */
  async keepManifest(bytes) {
    await this.#write(MANIFEST, bytes);
  }

  /** Names of all files here: each kept chunk's name is its sha256. */
  async names() {
    const names = [];
    for await (const name of this.directory.keys()) names.push(name);
    return names;
  }

  /** The bytes kept for a chunk, unchecked; null if there is no file of its size. */
  async read(chunk) {
    const file = await this.#file(chunk.sha256);
    return file?.size === chunk.size ? file.arrayBuffer() : null;
  }

  /**
   * Opens a kept chunk for reading piece by piece: `read(into, at)` fills `into` with the bytes starting at `at` and returns how many there were. Where several
   * workers may have a file open at once, the bytes come from the system without a copy in between.
   */
  async reader(chunk) {
    const handle = await this.directory.getFileHandle(chunk.sha256);
    if ("mode" in (globalThis.FileSystemSyncAccessHandle?.prototype ?? {})) {
      const access = await handle.createSyncAccessHandle({ mode: "read-only" });
      return { read: (into, at) => access.read(into, { at }), close: () => access.close() };
    }
    const file = await handle.getFile();
    const read = (into, at) => {
      const bytes = new Uint8Array(new FileReaderSync().readAsArrayBuffer(file.slice(at, at + into.length)));
      into.set(bytes);
      return bytes.length;
    };
    return { read, close: () => {} };
  }

  /** Removes a chunk, if it can be removed. */
  async discard(chunk) {
    if (this.isOurs) await this.directory.removeEntry(chunk.sha256).catch(() => {});
  }

  /** Keeps the bytes of a chunk. Throws when the disk is full. */
  async write(chunk, bytes) {
    await this.#write(chunk.sha256, bytes);
  }

  /** Removes everything that none of these chunks needs: chunks of older versions, and what interrupted writes left behind. */
  async sweep(chunks) {
    if (!this.isOurs) return;
    const needed = new Set(chunks.map((chunk) => chunk.sha256)).add(MANIFEST);
    const names = await this.names();
    // A file that is open somewhere cannot be removed, and need not be.
    await Promise.all(names.filter((name) => !needed.has(name)).map((name) => this.directory.removeEntry(name).catch(() => {})));
  }

  /** Total bytes of everything that is kept. */
  async size() {
    let size = 0;
    for await (const handle of this.directory.values()) size += (await handle.getFile()).size;
    return size;
  }

  async #file(name) {
    try {
      return await (await this.directory.getFileHandle(name)).getFile();
    } catch {
      return null;
    }
  }

  async #write(name, bytes) {
    if (!this.isOurs) return;
    const part = `${name}.${Math.random().toString(36).slice(2)}.part`;
    const handle = await this.directory.getFileHandle(part, { create: true });
    try {
      await fill(handle, new Uint8Array(bytes));
      // At the quota limit, some engines write fewer bytes than asked without an error.
      const { size } = await handle.getFile();
      if (size !== bytes.length) throw new DOMException(`${size} of ${bytes.length} bytes were written`, "QuotaExceededError");
      await this.directory.removeEntry(name).catch(() => {});
      await handle.move(name);
    } catch (error) {
      await this.directory.removeEntry(part).catch(() => {});
      throw error;
    }
  }
}

/** Removes an entry that may not exist. */
async function remove(act) {
  if (!navigator.storage?.getDirectory) return;
  try {
    await act(await navigator.storage.getDirectory());
  } catch (error) {
    if (error.name !== "NotFoundError") throw error;
  }
}

/** Takes a lock for as long as this worker lives; false if another worker holds it. */
function lock(name) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), LOCK_WAIT_MS);
  return new Promise((resolve) => {
    const held = () => (resolve(true), new Promise(() => {}));
    navigator.locks.request(name, { signal: controller.signal }, held).catch(() => resolve(false));
  });
}

async function fill(handle, bytes) {
  if (!handle.createSyncAccessHandle) {
    const writable = await handle.createWritable();
    await writable.write(bytes);
    return writable.close();
  }
  const access = await handle.createSyncAccessHandle();
  try {
    access.truncate(0);
    let n_written = 0;
    while (n_written < bytes.length) {
      const n = access.write(bytes.subarray(n_written), { at: n_written });
      if (!(n > 0)) throw new DOMException("the disk is full", "QuotaExceededError");
      n_written += n;
    }
    access.flush();
  } finally {
    access.close();
  }
}
