"use strict";
// A page that names its events looks again at itself when something happened, and swaps the parts
// that changed. Without this script every page reads the same, as it was when it was loaded.

const PAUSE_MS = 1500; // between two looks, however much happens
const AGAIN_MS = 30000; // after the server refused to be listened to

function swapParts(fresh) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (other === null) {
      part.remove();
    } else if (part.outerHTML !== document.adoptNode(other).outerHTML) {
      keepState(part, other);
      const focused = part.contains(document.activeElement) ? describe(document.activeElement) : null;
      part.replaceWith(other);
      if (focused) other.querySelector(focused)?.focus({ preventScroll: true });
    }
  }
  const known = new Set([...document.querySelectorAll("[data-live]")].map((part) => part.id));
  for (const other of fresh.querySelectorAll("main > [data-live]")) {
    if (!known.has(other.id)) document.querySelector("main").append(document.adoptNode(other));
  }
}

function keepState(part, other) {
  for (const open of part.querySelectorAll("details[open][id]")) {
    const same = other.querySelector("#" + CSS.escape(open.id));
    if (same) same.open = true;
  }
}

function describe(element) {
  if (element.id) return "#" + CSS.escape(element.id);
  const address = element.getAttribute("href");
  return address ? `a[href="${CSS.escape(address)}"]` : element.localName;
}

function follow(address) {
  const note = document.getElementById("following");
  let waiting = false;
  let busy = false;
  let events = null;

  async function look() {
    if (busy || document.hidden) {
      waiting = true;
      return;
    }
    busy = true;
    waiting = false;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected) location.reload(); // logged out meanwhile
      if (answer.ok) swapParts(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      waiting = true; // the server is away; the next event looks again
    }
    setTimeout(() => {
      busy = false;
      if (waiting) look();
    }, PAUSE_MS);
  }

  // A browser has six connections for a server: a tab that nobody sees holds none of them.
  function listen() {
    if (document.hidden) {
      events?.close();
      events = null;
    } else if (events === null) {
      events = new EventSource(address);
      events.addEventListener("change", look);
      events.addEventListener("tick", look);
      events.addEventListener("open", () => {
        note.textContent = "This page follows what happens.";
        look();
      });
      events.addEventListener("error", missed);
    }
  }

  function missed() {
    note.textContent = "The page does not hear from its server; what it shows may be old.";
    if (events?.readyState !== EventSource.CLOSED) return; // the browser tries again
    events = null;
    setTimeout(() => {
      listen();
      look(); // leads to the log-in, where the session is over
    }, AGAIN_MS);
  }

  document.addEventListener("visibilitychange", listen);
  listen();
}

if (document.body.dataset.events) follow(document.body.dataset.events);
