// Draws every figure of the report: each `div.plot` is followed by its data and layout as JSON.
// Colours are written as var(--name) and take the page's own values, again whenever the reader's theme changes.
(() => {
  "use strict";
  const token = /^var\((--[\w-]+)\)$/;

  const resolve = (value, style) => {
    if (typeof value === "string") {
      const name = token.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() || value : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
  };

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    // On a touch screen dragging must scroll the page, not zoom the figure.
    const dragmode = matchMedia("(hover: hover)").matches ? "zoom" : false;
    for (const plot of document.querySelectorAll("div.plot")) {
      const figure = resolve(JSON.parse(plot.nextElementSibling.textContent), style);
      const options = { responsive: true, displaylogo: false, displayModeBar: false };
      Plotly.react(plot, figure.data, { dragmode, ...figure.layout }, options);
    }
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
