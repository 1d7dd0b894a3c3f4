// A classic script, so that it runs where modules do not: says why when the page's program (page.js) does not start.

(() => {
  const hasStarted = () => document.readyState !== "loading" && document.getElementById("status").textContent !== "Starting";

  function say(title, next) {
    if (document.readyState === "loading") return document.addEventListener("DOMContentLoaded", () => say(title, next));
    if (hasStarted()) return;
    document.getElementById("status").textContent = "The page could not start";
    document.getElementById("bar").classList.add("still");
    document.getElementById("model-word").textContent = "not loaded";
    const box = document.createElement("div");
    box.className = "error";
    box.setAttribute("role", "alert");
    const heading = document.createElement("strong");
    heading.textContent = title;
    box.append(heading, next);
    document.getElementById("load-error").replaceChildren(box);
  }

  if (location.protocol === "file:") {
    return say("This page was opened as a file.", "Browsers run its program only from a web server: `node scripts/serve.mjs dist` or `python3 -m http.server -d dist 8080`, then http://localhost:8080/.");
  }
  if (!("noModule" in HTMLScriptElement.prototype)) return say("This browser is too old for the page.", "Use a current Chrome, Edge, Firefox or Safari.");
  // Of a script that did not arrive, or arrived as something else, the event comes to the element and does not bubble.
  addEventListener("error", ({ target }) => {
    if (hasStarted() || !(target instanceof HTMLScriptElement || target === window)) return;
    say("A part of this page's program did not arrive as it should.", "Reload the page; if that does not help, tell its owner.");
    // What came wrong must not come out of the browser's cache again.
    for (const { name } of performance.getEntriesByType("resource")) fetch(name, { cache: "reload" }).catch(() => {});
  }, true);
})();
