/** Small charts, drawn in a box of 300 by 40 that is stretched to its place. */

import { svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 40;
const TOP = 3; // so that the highest line is not cut in half

/** A curve over time that is redrawn in place. */
export function curve() {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "chart" },
    svg("path", { class: "area" }), svg("path", { class: "line" }));
}

/**
 * Points are [seconds, value]; one that is more than `gapS` after the former begins a new line, since nobody knows what
 * was in between.
 */
export function drawCurve(chart, points, { from, to, gapS, told }) {
  const most = Math.max(1, ...points.map(([, value]) => value));
  const x = (at) => (((at - from) / (to - from)) * WIDTH).toFixed(1);
  const y = (value) => (HEIGHT - 1 - (value / most) * (HEIGHT - 1 - TOP)).toFixed(1);
  const runs = [];
  for (const point of points) {
    const last = runs.at(-1)?.at(-1);
    if (last === undefined || point[0] - last[0] > gapS) runs.push([]);
    runs.at(-1).push(point);
  }
  const line = (run) => `M${run.map(([at, value]) => `${x(at)} ${y(value)}`).join("L")}`;
  const [area, stroke] = chart.children;
  stroke.setAttribute("d", runs.map(line).join(""));
  area.setAttribute("d", runs.map((run) => `${line(run)}L${x(run.at(-1)[0])} ${HEIGHT}L${x(run[0][0])} ${HEIGHT}Z`).join(""));
  chart.setAttribute("aria-label", told);
}

/** As many bars as there are values, each with what it says when it is pointed at. */
export function bars(count) {
  const step = WIDTH / count;
  const each = (_, n) => svg("rect", { x: n * step + 1, width: step - 2, y: HEIGHT, height: 0 }, svg("title"));
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "chart bars" },
    ...Array.from({ length: count }, each));
}

export function drawBars(chart, values, { told, each }) {
  const most = Math.max(1, ...values);
  for (const [n, bar] of [...chart.children].entries()) {
    const height = values[n] === 0 ? 0.7 : Math.max(1.5, (values[n] / most) * (HEIGHT - TOP));
    bar.setAttribute("y", HEIGHT - height);
    bar.setAttribute("height", height);
    bar.classList.toggle("zero", values[n] === 0);
    const title = bar.firstElementChild;
    const text = each(n);
    if (title.textContent !== text) title.textContent = text;
  }
  chart.setAttribute("aria-label", told);
}
