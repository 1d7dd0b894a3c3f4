// Counts the network requests since the image was opened, and explains what it can and cannot see. The service worker reports the requests that pass through
// it, including its own: those of the page, of the model's workers, and of other tabs of this site. The rest comes from the browser's log of the page.
// Responses from a cache are not counted.

/** Whether an entry of the browser's log went to the network. Details of other origins are hidden: these count. */
export const isFromNetwork = ({ name, transferSize, decodedBodySize }) => !/^(blob|data):/.test(name) && (transferSize > 0 || decodedBodySize === 0);

/** Watches requests; `report({ n, n_model, withWorkers, counts })` is called on every change. `n_model` of them went to the model's folder; `withWorkers`, set
 * from outside, says whether the service worker was in control when the model's workers started. */
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

  /** Counts a request that was still in progress at `time`, in milliseconds since 1970. */
  add(url, time) {
    if (this.since === null || time < this.since) return;
    this.urls.push(url);
    this.#tell();
  }

  #tell() {
    const n_model = this.urls.filter((url) => url.startsWith(this.modelFolder)).length;
    this.report({ n: this.urls.length, n_model, withWorkers: this.withWorkers, counts: this.counts });
  }

  /** The image is open: count from now on. */
  restart() {
    this.since = performance.timeOrigin + performance.now();
    this.urls = [];
    this.#tell();
  }
}

/** The line under the page, and the sentences that explain how it was counted. */
export function requestsText({ n, n_model, withWorkers, counts }) {
  if (!counts) return ["Nothing is uploaded. This browser does not let a page count its requests.", ""];
  const why = n > 0 && n === n_model ? ", all to fetch the model" : "";
  const some = `${n} request${n === 1 ? "" : "s"}`;
  const line = withWorkers
    ? `Nothing is uploaded: ${some} since the image was opened${why}.`
    : `Nothing is uploaded: ${some} of this page since the image was opened${why}; its workers are not counted here.`;
  const workers = withWorkers
    ? "This counts what goes to the network from this page, its workers and its service worker, and from other tabs of this site; requests already in progress count too."
    : "This counts the page's own requests, from the browser's log. Those of its workers are seen only through a service worker, and none was in control when they "
      + "started: browsers allow service workers only over https and on localhost.";
  const how = `${workers} The page's policy lets it and its workers reach only its own host. The page checks when it opens whether this site has changed; browsers `
    + "not based on Chromium may check again some seconds later (for sw.js), which no page can see.";
  return [line, how];
}
