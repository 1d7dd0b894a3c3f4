// A plain static server without special headers: node scripts/serve.mjs [FOLDER] [PORT]. Like any static host, it serves ranges, compresses text and wasm, and
// answers 304 for files that the browser already has.

import { createReadStream } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".wasm": "application/wasm",
  ".png": "image/png",
  ".svg": "image/svg+xml",
};

const COMPRESSED = new Set([".html", ".css", ".js", ".json", ".wasm", ".svg"]);

// Compressed files by path and modification time, as promises, so that a file is compressed once however many requests come.
const compressed = new Map();

function gzipped(file, { mtimeMs, size }) {
  const key = `${file} ${mtimeMs} ${size}`;
  if (!compressed.has(key)) compressed.set(key, readFile(file).then((bytes) => promisify(gzip)(bytes, { level: 9 })));
  return compressed.get(key);
}

/** The single range of a request as { start, end } inclusive; null if there is no valid one. */
function rangeOf(header, size) {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
  if (!match || (match[1] === "" && match[2] === "")) return null;
  const start = match[1] === "" ? Math.max(0, size - Number(match[2])) : Number(match[1]);
  const end = match[1] === "" || match[2] === "" ? size - 1 : Math.min(Number(match[2]), size - 1);
  return { start, end };
}

/** Answers one request with a file under `root`. */
export async function serveFile(root, request, response) {
  const end = (status, text) => response.writeHead(status, { "Content-Type": "text/plain" }).end(text);
  if (request.method !== "GET" && request.method !== "HEAD") return end(405, "GET and HEAD only\n");
  let path;
  try {
    path = normalize(decodeURIComponent(new URL(request.url, "http://host").pathname));
  } catch {
    return end(400, "bad address\n");
  }
  let file = join(root, path);
  let info = await stat(file).catch(() => null);
  if (info?.isDirectory()) {
    if (!path.endsWith("/")) return response.writeHead(301, { Location: "./" + path.split("/").at(-1) + "/" }).end();
    file = join(file, "index.html");
    info = await stat(file).catch(() => null);
  }
  if (!info?.isFile() || !resolve(file).startsWith(resolve(root))) return end(404, "not found\n");
  const headers = { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Accept-Ranges": "bytes", "Last-Modified": info.mtime.toUTCString() };
  if (request.headers["if-modified-since"] === headers["Last-Modified"]) return response.writeHead(304, headers).end();
  if (COMPRESSED.has(extname(file))) {
    headers.Vary = "Accept-Encoding";
    if (!request.headers.range && /\bgzip\b/.test(request.headers["accept-encoding"] ?? "")) {
      const bytes = await gzipped(file, info).catch(() => null);
      if (!bytes) return end(500, "the file cannot be read\n");
      response.writeHead(200, { ...headers, "Content-Encoding": "gzip", "Content-Length": bytes.length });
      return response.end(request.method === "HEAD" ? undefined : bytes);
    }
  }
  const range = rangeOf(request.headers.range, info.size);
  if (range && range.start > range.end) return response.writeHead(416, { "Content-Range": `bytes */${info.size}` }).end();
  if (range) headers["Content-Range"] = `bytes ${range.start}-${range.end}/${info.size}`;
  headers["Content-Length"] = range ? range.end - range.start + 1 : info.size;
  response.writeHead(range ? 206 : 200, headers);
  if (request.method === "HEAD") return response.end();
  createReadStream(file, range ?? {}).on("error", () => response.destroy()).pipe(response);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = process.argv[2] ?? "dist";
  const port = Number(process.argv[3] ?? 8080);
  // The builds take a second to compress: do it before anybody asks.
  for (const name of await readdir(join(root, "pkg")).catch(() => [])) {
    const file = join(root, "pkg", name);
    if (COMPRESSED.has(extname(name))) gzipped(file, await stat(file)).catch(() => {});
  }
  createServer((request, response) => serveFile(root, request, response)).listen(port, "localhost", () => {
    console.log(`${root} is served at http://localhost:${port}/ (stop with Ctrl+C)`);
  });
}
