// A plain static server without special headers: node scripts/serve.mjs [FOLDER] [PORT]. Ranges are served; nothing else is clever.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".wasm": "application/wasm",
  ".png": "image/png",
  ".svg": "image/svg+xml",
};

/** The one range of a request as { start, end } inclusive; null where there is none to serve. */
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
  createServer((request, response) => serveFile(root, request, response)).listen(port, "localhost", () => {
    console.log(`${root} is served at http://localhost:${port}/ (Ctrl+C ends it)`);
  });
}
