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
    // A function may take long; a page that is asked for again each second may not.
    if (!isLive(event)) event.detail.ctx.request.timeout = "0s";
    else if (paused || document.hidden) event.preventDefault();
  });
  const say = (text) => {
    if (lost && lost.textContent !== text) lost.textContent = text;
  };
  let saidOf = null;
  const noAnswer = (event) => {
    saidOf = isLive(event);
    say(saidOf ? "No answer. Trying again." : "That did not work. Is the gateway there?");
  };
  document.addEventListener("htmx:error", noAnswer);
  document.addEventListener("htmx:response:error", noAnswer);
  document.addEventListener("htmx:after:swap", (event) => {
    // Also comes where nothing is swapped; and what a form could not do is not done by the page that is asked for meanwhile.
    if (isLive(event) === saidOf && !(event.detail.ctx?.response?.status >= 400)) say("");
  });
})();
