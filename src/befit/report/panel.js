// The panel's slider: shows the largest member that fits the memory chosen, and whether the mixture of experts does.
(() => {
  "use strict";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];

  const written = (bytes) => {
    let rung = 0;
    while (bytes >= 999.5 && rung < units.length - 1) [bytes, rung] = [bytes / 1024, rung + 1];
    return `${bytes.toPrecision(3)}\u202f${units[rung]}`;
  };

  for (const panel of document.querySelectorAll(".memory")) {
    const [low, high] = [Number(panel.dataset.low), Number(panel.dataset.high)];
    const slider = panel.querySelector("input");
    const states = [...panel.querySelectorAll(".state")].sort((a, b) => a.dataset.need - b.dataset.need);
    const rival = panel.querySelector("article.rival");
    let room = 0;

    const show = (bytes) => {
      room = bytes;
      const found = states.findLast((state) => Number(state.dataset.need) <= room);
      for (const state of states) state.hidden = state !== found;
      const words = [found.dataset.said];
      for (const verdict of rival ? rival.querySelectorAll("[data-fits]") : []) {
        verdict.hidden = (verdict.dataset.fits === "yes") !== Number(rival.dataset.need) <= room;
        if (!verdict.hidden) words.push(verdict.dataset.said);
      }
      panel.style.setProperty("--room", `${(100 * room) / high}%`);
      panel.style.setProperty("--slid", `${(100 * (room - low)) / (high - low)}%`);
      panel.querySelector("output").textContent = written(room);
      panel.querySelector(".said").textContent = words.join(" ");
      slider.setAttribute("aria-valuetext", written(room));
    };

    // A button goes to where the next size begins to fit.
    const step = (direction) => {
      const needs = states.map((state) => Math.max(Number(state.dataset.need), low));
      const now = needs.findLastIndex((need) => need <= room);
      const next = needs[Math.min(Math.max(now + direction, 0), needs.length - 1)];
      slider.value = Math.ceil((1000 * (next - low)) / (high - low));
      show(next);
    };

    slider.addEventListener("input", () => show(low + ((high - low) * slider.value) / 1000));
    for (const button of panel.querySelectorAll("button")) {
      button.addEventListener("click", () => step(Number(button.dataset.step)));
    }
    panel.querySelector(".control").hidden = false;
    show(Math.max(...states.map((state) => Number(state.dataset.need)), rival ? Number(rival.dataset.need) : 0));
  }
})();
