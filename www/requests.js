// Counts network requests since the image was opened, and says what it can and cannot see.
// The page's own requests come from the browser's resource log. Requests of the workers do not appear there: the service worker, which every
// request of this site passes through once it is in charge, reports those.

/** Watches requests; `report({ n, n_model, withWorkers, counts })` is called on every change. `n_model` of them went to the
 * model's folder; `withWorkers`, set from outside, says whether the service worker was in charge when the model's workers started. */
export class Requests {
  constructor(modelFolder, report) {
    this.modelFolder = modelFolder;
    this.report = report;
    this.since = null;
    this.urls = [];
    this.withWorkers = false;
    try {
      new PerformanceObserver((list) => list.getEntries().forEach((entry) => this.#add(entry.name, entry.startTime)))
        .observe({ type: "resource", buffered: false });
      this.counts = true;
    } catch {
      this.counts = false;
    }
    const serviceWorker = navigator.serviceWorker;
    serviceWorker?.addEventListener("message", ({ data }) => {
      if (data?.type === "request") this.#add(data.url, performance.now());
    });
  }

  #add(url, startTime) {
    if (this.since === null || startTime < this.since || /^(blob|data):/.test(url)) return;
    this.urls.push(url);
    this.#tell();
  }

  #tell() {
    const n_model = this.urls.filter((url) => url.startsWith(this.modelFolder)).length;
    this.report({ n: this.urls.length, n_model, withWorkers: this.withWorkers, counts: this.counts });
  }

  /** The image is open: count from here. */
  restart() {
    this.since = performance.now();
    this.urls = [];
    this.#tell();
  }
}

/** The line under the page, and the sentence that says how it was counted. */
export function requestsText({ n, n_model, withWorkers, counts }) {
  if (!counts) return ["Nothing is uploaded.", "This browser does not let a page count its requests."];
  const why = n > 0 && n === n_model ? ", all to fetch the model" : "";
  const line = `Nothing is uploaded: ${n} request${n === 1 ? "" : "s"} since the image was opened${why}.`;
  const workers = withWorkers
    ? "and those of its workers, which pass through this site's service worker (workers in other tabs of this site count too)"
    : "but not those of its workers: they are seen through a service worker, and none was in charge when they started";
  const how = `Counted are the page's own requests, from the browser's log, ${workers}. `
    + "The page's policy lets it and its workers reach only its own host; once the model is loaded you can cut the network and go on.";
  return [line, how];
}
