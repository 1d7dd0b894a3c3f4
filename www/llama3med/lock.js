// The functions that make requests, and how a page or a worker gives them up for the rest of its life.

const refuse = () => Promise.reject(new TypeError("The network is locked."));

function Refused() {
  throw new TypeError("The network is locked.");
}

/** Removes everything that makes requests from this global scope. */
export function giveUpNetwork() {
  const means = { fetch: refuse, ...Object.fromEntries(["XMLHttpRequest", "WebSocket", "EventSource", "WebTransport", "RTCPeerConnection", "Worker", "SharedWorker", "importScripts"].map((name) => [name, Refused])) };
  for (const [name, value] of Object.entries(means)) {
    if (name in globalThis) Object.defineProperty(globalThis, name, { value, writable: false, configurable: false });
  }
  if (globalThis.navigator?.sendBeacon) Object.defineProperty(navigator, "sendBeacon", { value: () => false });
}
