// "Lock the network": from then on nothing of this site may be fetched. Three locks, each of which holds by itself where it holds at all:
// - the page's policy gets another one beside it, which allows no connection, and which the browser enforces (`lockPage`);
// - whoever locks gives up the means of making a request (`giveUpNetwork`): the page, and each of the model's workers, whose policy cannot be changed;
// - the service worker hands on nothing to the network while a locked page is there (sw.js). Without it a worker could still import scripts of this site.
// Only a reload unlocks.

import { giveUpNetwork } from "../llama3med/index.js";

/** Locks the page itself. Pictures that are made here (blob:) can still be shown; `held` is what the service worker answers by itself (service.js). */
export function lockPage(held = "'none'") {
  const policy = document.createElement("meta");
  policy.httpEquiv = "Content-Security-Policy";
  policy.content = `default-src 'none'; img-src blob:; connect-src ${held}`;
  document.head.append(policy);
  giveUpNetwork();
}
