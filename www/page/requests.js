// Counts the network requests since the image was opened, and says what it can and cannot see.
// What passes through the service worker is reported by it, with what it fetches itself: of the page, of the model's workers, and of other tabs of this site.
// The rest comes from the browser's log of the page. What a cache has answered is no request.

/** Whether an entry of the browser's log went to the network. Of other origins nothing is told: these count. */
export const isFromNetwork = ({ name, transferSize, decodedBodySize }) => !/^(blob|data):/.test(name) && (transferSize > 0 || decodedBodySize === 0);

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
      const ofPage = ({ workerStart }) => workerStart === 0;
      new PerformanceObserver((list) => list.getEntries().filter(ofPage).filter(isFromNetwork).forEach((entry) => this.add(entry.name, performance.timeOrigin + entry.responseEnd)))
        .observe({ type: "resource", buffered: false });
      this.counts = true;
    } catch {
      this.counts = false;
    }
    navigator.serviceWorker?.addEventListener("message", ({ data }) => {
      if (data?.type === "request") this.add(data.url, data.time);
    });
  }

  /** Counts a request that was still under way at `time`, in milliseconds since 1970. */
  add(url, time) {
    if (this.since === null || time < this.since) return;
    this.urls.push(url);
    this.#tell();
  }

  #tell() {
    const n_model = this.urls.filter((url) => url.startsWith(this.modelFolder)).length;
    this.report({ n: this.urls.length, n_model, withWorkers: this.withWorkers, counts: this.counts });
  }

  /** The image is open: count from here. */
  restart() {
    this.since = performance.timeOrigin + performance.now();
    this.urls = [];
    this.#tell();
  }
}

/** The line under the page, and the sentences that say how it was counted. */
export function requestsText({ n, n_model, withWorkers, counts }) {
  if (!counts) return ["Nothing is uploaded. This browser does not let a page count its requests.", ""];
  const why = n > 0 && n === n_model ? ", all to fetch the model" : "";
  const some = `${n} request${n === 1 ? "" : "s"}`;
  const line = withWorkers
    ? `Nothing is uploaded: ${some} since the image was opened${why}.`
    : `Nothing is uploaded: ${some} of this page since the image was opened${why}; its workers are not counted here.`;
  const workers = withWorkers
    ? "Counted is what goes to the network from this page, its workers and its service worker, and from other tabs of this site; what was under way already counts, too."
    : "Counted are the page's own requests, from the browser's log. Those of its workers are seen only through a service worker, and none was in charge when they "
      + "started: browsers have them only over https and on the machine itself.";
  const how = `${workers} The page's policy lets it and its workers reach only its own host. Whether this site has changed is asked when the page opens; browsers `
    + "other than Chromium and its kin may ask again some seconds later (for sw.js), which no page can see.";
  return [line, how];
}
