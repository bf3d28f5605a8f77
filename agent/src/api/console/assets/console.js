// What the page cannot do by htmx alone: rest while nobody looks or somebody reads, and say when no answer comes.
"use strict";
(() => {
  const pause = document.getElementById("pause");
  const lost = document.getElementById("lost");
  const isLive = (event) => event.detail.ctx?.sourceElement?.id === "live";
  let paused = false;

  if (pause) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
    });
  }
  document.addEventListener("htmx:config:request", (event) => {
    if (isLive(event) && (paused || document.hidden)) event.preventDefault();
  });
  const say = (text) => {
    if (lost && lost.textContent !== text) lost.textContent = text;
  };
  const noAnswer = (event) => say(isLive(event) ? "No answer. Trying again." : "That did not work. Is the gateway there?");
  document.addEventListener("htmx:error", noAnswer);
  document.addEventListener("htmx:response:error", noAnswer);
  document.addEventListener("htmx:after:swap", () => say(""));
})();
