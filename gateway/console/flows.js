/** Lag and throughput of each flow. */

import { get } from "./api.js";
import { curve, drawCurve } from "./chart.js";
import { byId, el, reconcile, say, sayOrHide } from "./dom.js";
import { number, rate } from "./words.js";

const SHOWN_S = 300;
const GAP_S = 13; // two samples, 5 s apart, are missing

export async function refreshFlows() {
  const { flows } = await get("/v1/flows");
  const now = Math.max(0, ...flows.map((flow) => flow.history.at(-1)?.[0] ?? 0)); // the gateway's clock, not ours
  reconcile(byId("flows-list"), flows, (flow) => flow.flow, create, (row, flow) => update(row, flow, now));
  sayOrHide(byId("flows-empty"), flows.length ? null : "No flow has read anything yet. Does `headrace run` run?");
}

function create(flow) {
  const measure = (name, unit) => el("div", { class: "measure" }, el("p", {}, el("span", { class: "of" }, name), el("b"), el("span", { class: "of" }, unit)), curve());
  return el("li", {}, el("h3", {}, flow.flow), measure("lag", ""), measure("", "/s"));
}

function update(row, flow, now) {
  const [name, lag, throughput] = row.children;
  const topics = flow.topics.map((topic) => `${topic.topic}: ${number(topic.lag)} behind, at ${number(topic.committed)} of ${number(topic.end)}`).join("\n");
  if (name.title !== topics) name.title = topics;
  const perS = flow.per_s ?? 0;
  show(lag, number(flow.lag), flow.history.map(([at, value]) => [at, value]), now, (most) => `Lag of ${flow.flow}: ${number(flow.lag)} now, ${number(most)} at most in 5 minutes`);
  show(throughput, rate(perS), flow.history.filter(([, , value]) => value !== null).map(([at, , value]) => [at, value]), now,
    (most) => `Records per second of ${flow.flow}: ${rate(perS)} now, ${rate(most)} at most in 5 minutes`);
  lag.classList.toggle("behind", flow.lag > 0);
}

function show(place, value, points, now, told) {
  say(place.querySelector("b"), value);
  const most = Math.max(0, ...points.map(([, y]) => y));
  drawCurve(place.lastElementChild, points, { from: now - SHOWN_S, to: now, gapS: GAP_S, told: told(most) });
  if (place.title !== told(most)) place.title = told(most);
}
