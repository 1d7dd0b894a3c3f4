// The service worker (sw.js), seen from the page: with it the page opens with the network cut, and the requests of the model's workers are seen.
// On plain http, in some private windows and where there is no room for it there is none: nothing waits for it then.

const IN_CHARGE_MS = 5_000;
const KEEP_MS = 10_000;

const container = globalThis.navigator?.serviceWorker;
const atMost = (ms, promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, ms))]);

/** The page's connection to its service worker. */
export class Service {
  #registration;
  #wasInCharge = Boolean(container?.controller);
  #isAsked = false; // this page has asked for the new version

  /**
   * @param {{ onNewer: () => void, after: Promise<unknown> }} options  `onNewer` hears that there is a newer version of the page; `after` is what a first
   *   visit needs sooner than a service worker, which fetches the whole site
   */
  constructor({ onNewer, after }) {
    /** Whether a newer version took over in another tab: what this page would load from now on no longer fits it. */
    this.isReplaced = false;
    const first = this.#wasInCharge ? Promise.resolve() : after;
    this.#registration = container ? first.then(() => this.#register(onNewer)).catch(() => null) : Promise.resolve(null);
    /** Resolves when the service worker is in charge, or when it is clear that none will be soon: it sees the requests of those workers alone that start later. */
    this.inCharge = first.then(() => atMost(IN_CHARGE_MS, this.#registration));
    container?.addEventListener("controllerchange", () => {
      if (this.#isAsked) return location.reload();
      if (this.#wasInCharge) {
        this.isReplaced = true;
        onNewer();
      }
      this.#wasInCharge = true;
    });
  }

  async #register(onNewer) {
    const registration = await container.register("sw.js", { updateViaCache: "none" });
    const offer = () => registration.waiting && container.controller && onNewer();
    registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", offer));
    offer();
    if (registration.active) return registration;
    await activated(registration.installing ?? registration.waiting);
    const version = document.querySelector("meta[name=version]").content;
    return (await ask(registration, { type: "claim", version })) ? registration : null;
  }

  /** Has the wasm build in use kept, and waits for it where the service worker is in charge, so that no request is left for later. */
  async keepBuild(build) {
    const kept = this.#registration.then((registration) => registration && ask(registration, { type: "keep", build }));
    if (container?.controller) await atMost(KEEP_MS, kept);
  }

  /** Reloads the page as its newer version. */
  async renew() {
    this.#isAsked = true;
    const waiting = (await container.getRegistration())?.waiting;
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
