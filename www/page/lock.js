// "Lock the network": from then on nothing of this site may be fetched. Three locks, each of which is effective by itself where it applies at all:
// - a second policy is added to the page's own: it allows no connections, and the browser enforces it (`lockPage`);
// - the page and each of the model's workers, whose policy cannot be changed, give up the functions that make requests (`giveUpNetwork`);
// - the service worker forwards nothing to the network while a locked page exists (sw.js). Without it a worker could still import scripts of this site.
// Only a reload unlocks.

import { giveUpNetwork } from "../llama3med/index.js";

/** Locks the page itself. Pictures created here (blob:) can still be shown; `held` is the URL that the service worker answers by itself (service.js). */
export function lockPage(held = "'none'") {
  const policy = document.createElement("meta");
  policy.httpEquiv = "Content-Security-Policy";
  policy.content = `default-src 'none'; img-src blob:; connect-src ${held}`;
  document.head.append(policy);
  giveUpNetwork();
}
