// The page's side of the service worker (sw.js), with which the page opens without a network and the requests of the model's workers are seen. On plain http,
// in some private windows and if there is no room for it, there is none: then nothing waits for it.

const IN_CHARGE_MS = 5_000;
const KEEP_MS = 10_000;
const ASKED_MS = 2_000;

// Chromium asks for sw.js, to see whether it has changed, one second after a page from the service worker becomes idle: when at most two requests have been in
// progress for a moment. That could be after a picture was opened. So the page asks when it starts, and does not become idle: these requests go only to the
// service worker, which holds them.
const N_HELD = 3;
const LEAST_HELD_MS = 1_000; // a request answered sooner is not repeated
const RELEASED = 204; // see sw.js
const { fetch } = globalThis; // still works when the page has given up the network

/** The one URL that is requested again and again, if there is a service worker: it answers by itself. */
export const heldUrl = () => new URL("icon.svg", document.baseURI).href;

async function hold() {
  for (let isOver = false; !isOver; ) {
    const start = performance.now();
    const answer = await fetch(heldUrl(), { headers: { "X-Hold": "1" } }).catch(() => null);
    isOver = answer?.status === RELEASED || performance.now() - start < LEAST_HELD_MS;
  }
}

const container = globalThis.navigator?.serviceWorker;
const atMost = (ms, promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, ms))]);

/** The page's connection to its service worker. */
export class Service {
  #registration;
  #wasInCharge = Boolean(container?.controller);
  #isAsked = false; // this page has asked for the new version

  /**
   * @param {{ onNewer: () => void, after: Promise<unknown> }} options  `onNewer` is called when there is a newer version of the page; `after` is what a first
   * visit needs before a service worker, which fetches the whole site; `onAsked` is called when the browser has fetched sw.js
   */
  constructor({ onNewer, after, onAsked }) {
    /** Whether a newer version took over in another tab: what this page would load from now on no longer fits it. */
    this.isReplaced = false;
    const first = this.#wasInCharge ? Promise.resolve() : after;
    this.#registration = container ? first.then(() => this.#register(onNewer, onAsked)).catch(() => null) : Promise.resolve(null);
    /** Resolves when the service worker is in control, or when it is clear that none will be soon: it only sees the requests of workers that start later. */
    this.inCharge = first.then(() => atMost(IN_CHARGE_MS, this.#registration));
    /** Resolves when the browser has checked whether the site has changed, or may take long to do so. */
    this.asked = this.#wasInCharge ? atMost(ASKED_MS, this.#registration.then((registration) => registration?.update().finally(onAsked))).catch(() => {}) : Promise.resolve();
    if (this.#wasInCharge) this.asked.then(() => Array.from({ length: N_HELD }, hold)); // not sooner: the check would wait for them
    container?.addEventListener("controllerchange", () => {
      if (this.#isAsked) return location.reload();
      if (this.#wasInCharge) {
        this.isReplaced = true;
        onNewer();
      }
      this.#wasInCharge = true;
    });
  }

  async #register(onNewer, onAsked) {
    const registration = await container.register("sw.js", { updateViaCache: "none" });
    if (!this.#wasInCharge) onAsked();
    const offer = () => registration.waiting && container.controller && onNewer();
    registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", offer));
    offer();
    if (registration.active) return registration;
    await activated(registration.installing ?? registration.waiting);
    const version = document.querySelector("meta[name=version]").content;
    const isClaimed = await ask(registration, { type: "claim", version });
    // The page learns of its controller slightly later than of the controller's answer.
    if (isClaimed && !container.controller) await new Promise((resolve) => container.addEventListener("controllerchange", resolve, { once: true }));
    return isClaimed ? registration : null;
  }

  /** Makes the service worker keep the wasm build in use, and waits for it if the service worker is in control, so that no request is left for later. */
  async keepBuild(build) {
    const kept = this.#registration.then((registration) => registration && ask(registration, { type: "keep", build }));
    if (container?.controller) await atMost(KEEP_MS, kept);
  }

  /** Makes the service worker forward nothing to the network while this page exists; resolves with whether there is a service worker that does so. */
  async lock() {
    const registration = container?.controller && (await this.#registration);
    return Boolean(registration && (await ask(registration, { type: "lock" })));
  }

  /** Ends the service worker, which keeps nothing from now on. This page remains under its control as long as it is open. */
  async forget() {
    const registration = await container?.getRegistration();
    if (!registration) return;
    if (registration.active) await ask(registration, { type: "forget" });
    await registration.unregister();
  }

  /** Reloads the page in its newer version. */
  async renew() {
    this.#isAsked = true;
    const { waiting, active } = (await container.getRegistration()) ?? {};
    active?.postMessage({ type: "release" }); // with pending requests it would not be replaced
    if (waiting) waiting.postMessage({ type: "take over" });
    else location.reload();
  }
}

/** Resolves when a service worker is active; rejects if it could not be installed. */
function activated(worker) {
  return new Promise((resolve, reject) => {
    const look = () => {
      if (worker?.state === "activated") resolve();
      else if (!worker || worker.state === "redundant") reject(new Error("the service worker could not be installed"));
    };
    worker?.addEventListener("statechange", look);
    look();
  });
}

function ask(registration, message) {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => resolve(data);
    registration.active.postMessage({ ...message, port: port2 }, [port2]);
  });
}
