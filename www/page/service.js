// The service worker (sw.js), seen from the page: with it the page opens with the network cut, and the requests of the model's workers are seen.
// On plain http, in some private windows and where there is no room for it there is none: nothing waits for it then.

const IN_CHARGE_MS = 5_000;
const KEEP_MS = 10_000;
const ASKED_MS = 2_000;

// Chromium asks for sw.js, to see whether it has changed, a second after a page that came from the service worker has fallen silent: when at most two
// requests have been under way for a moment. That would be after a picture was opened. So the page asks at its beginning, and does not fall silent: these
// requests go no farther than to the service worker, which holds them.
const N_HELD = 3;
const LEAST_HELD_MS = 1_000; // what is answered sooner is not asked for again
const RELEASED = 204; // see sw.js
const { fetch } = globalThis; // also when the page has given up the network

/** The one address that is asked for again and again, where there is a service worker: it answers by itself. */
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
   * @param {{ onNewer: () => void, after: Promise<unknown> }} options  `onNewer` hears that there is a newer version of the page; `after` is what a first
   *   visit needs sooner than a service worker, which fetches the whole site; `onAsked` hears when the browser has fetched sw.js
   */
  constructor({ onNewer, after, onAsked }) {
    /** Whether a newer version took over in another tab: what this page would load from now on no longer fits it. */
    this.isReplaced = false;
    const first = this.#wasInCharge ? Promise.resolve() : after;
    this.#registration = container ? first.then(() => this.#register(onNewer, onAsked)).catch(() => null) : Promise.resolve(null);
    /** Resolves when the service worker is in charge, or when it is clear that none will be soon: it sees the requests of those workers alone that start later. */
    this.inCharge = first.then(() => atMost(IN_CHARGE_MS, this.#registration));
    /** Resolves when the browser has asked whether the site has changed, or may be doing so for long. */
    this.asked = this.#wasInCharge ? atMost(ASKED_MS, this.#registration.then((registration) => registration?.update().finally(onAsked))).catch(() => {}) : Promise.resolve();
    if (this.#wasInCharge) this.asked.then(() => Array.from({ length: N_HELD }, hold)); // not sooner: the question would wait for them
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
    // The page hears of its controller a little later than of its answer.
    if (isClaimed && !container.controller) await new Promise((resolve) => container.addEventListener("controllerchange", resolve, { once: true }));
    return isClaimed ? registration : null;
  }

  /** Has the wasm build in use kept, and waits for it where the service worker is in charge, so that no request is left for later. */
  async keepBuild(build) {
    const kept = this.#registration.then((registration) => registration && ask(registration, { type: "keep", build }));
    if (container?.controller) await atMost(KEEP_MS, kept);
  }

  /** Has nothing handed on to the network as long as this page is there; resolves with whether a service worker sees to that. */
  async lock() {
    const registration = container?.controller && (await this.#registration);
    return Boolean(registration && (await ask(registration, { type: "lock" })));
  }

  /** Ends the service worker, which keeps nothing from now on. This page stays in its charge as long as it is open. */
  async forget() {
    const registration = await container?.getRegistration();
    if (!registration) return;
    if (registration.active) await ask(registration, { type: "forget" });
    await registration.unregister();
  }

  /** Reloads the page as its newer version. */
  async renew() {
    this.#isAsked = true;
    const { waiting, active } = (await container.getRegistration()) ?? {};
    active?.postMessage({ type: "release" }); // with requests under way it would not give way
    if (waiting) waiting.postMessage({ type: "take over" });
    else location.reload();
  }
}

/** Resolves when a service worker is active; rejects when it could not be installed. */
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
