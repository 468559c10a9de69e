// Comforts; every page works without them. An answer appears as it is written, a marker under the pointer or
// the focus shows its source, and a job under way shows how far it is.
"use strict";

const form = document.querySelector("form[data-ask]");
const place = document.querySelector("[data-answer]");
let shown = location.pathname + location.search;

function add(parent, name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const [first, second] = part.split("\n");
      yield [first.slice("event: ".length), JSON.parse(second.slice("data: ".length))];
    }
  }
}

function tell(problem) {
  place.replaceChildren();
  const note = add(place, "div", "note bad");
  add(note, "p", "wrap", problem.detail);
  if (problem.hint) add(note, "p", "soft wrap", problem.hint);
}

async function finish(answer, kb) {
  const address = `/answers/${answer.id}${kb ? `?kb=${encodeURIComponent(kb)}` : ""}`;
  const part = await fetch(address, { headers: { "X-Part": "answer" } });
  if (!part.ok) return; // it was not logged: the streamed text stays
  place.innerHTML = await part.text(); // the server's own page, escaped by it
  history.pushState(null, "", address);
  shown = address;
  document.title = answer.question.slice(0, 60);
}

async function ask() {
  const asked = new URLSearchParams(new FormData(form));
  place.hidden = false;
  place.replaceChildren();
  document.querySelector("[data-recent]")?.setAttribute("hidden", "");
  const heading = document.querySelector("h1.question");
  if (heading) heading.textContent = asked.get("question");
  const state = add(place, "p", "soft small", "Searching…");
  const text = add(place, "p", "answer pending");
  const reply = await fetch(form.action, { method: "POST", body: asked, headers: { Accept: "text/event-stream" } });
  if (!reply.ok || !reply.headers.get("content-type").startsWith("text/event-stream")) {
    place.innerHTML = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main").innerHTML;
    return;
  }
  for await (const [name, value] of events(reply.body)) {
    if (name === "retrieval") state.textContent = `${value.contexts.length} passages found`;
    if (name === "text") text.textContent += value.text;
    if (name === "restart") text.textContent = "";
    if (name === "error") return tell(value);
    if (name === "done") await finish(value.answer, new URL(form.action).searchParams.get("kb"));
  }
  text.classList.remove("pending");
}

if (form && place) {
  const button = form.querySelector("button");
  form.addEventListener("submit", async (event) => {
    if (form.elements.against.value) return; // two answers come as a page
    event.preventDefault();
    button.disabled = true;
    try {
      await ask();
    } catch (error) {
      tell({ detail: "The connection to the server was lost.", hint: "Ask again." });
    } finally {
      button.disabled = false;
    }
  });
  form.elements.question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  // A link within the page comes here too: it needs no other page.
  addEventListener("popstate", () => shown !== location.pathname + location.search && location.reload());
}

function show(event, on) {
  const marker = event.target.closest?.("a.cite[href^='#source-']");
  if (marker) document.getElementById(marker.hash.slice(1))?.classList.toggle("on", on);
}
for (const name of ["pointerover", "focusin"]) document.addEventListener(name, (event) => show(event, true));
for (const name of ["pointerout", "focusout"]) document.addEventListener(name, (event) => show(event, false));

async function refresh() {
  const reply = await fetch(location.href);
  if (!reply.ok) return;
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main");
  document.querySelector("main").replaceChildren(...fresh.childNodes);
  if (document.querySelector("[data-refresh]")) setTimeout(refresh, 2000);
}
if (document.querySelector("[data-refresh]")) setTimeout(refresh, 1000);
