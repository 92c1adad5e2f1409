/** How states, times, numbers and names are said. */

import { el, say } from "./dom.js";

/** What a state means at a glance; the stylesheet gives each tone a colour. */
const TONES = {
  accepted: "waiting",
  redriven: "waiting",
  running: "working",
  awaiting_tool: "working",
  retrying: "troubled",
  deferred: "troubled",
  awaiting_review: "person",
  completed: "good",
  dead_lettered: "bad",
  cancelled: "off",
};

const SAID = { dead_lettered: "dead-lettered" };

export const stateInWords = (state) => SAID[state] ?? state.replaceAll("_", " ");

/** Show a state on a node as text and, through its tone, as a colour. */
export function showState(node, state) {
  say(node, stateInWords(state));
  node.dataset.tone = TONES[state.replaceAll(" ", "_")] ?? "waiting";
}

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const RATE = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const MONEY = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 4 });

export const number = (value) => NUMBER.format(value);
export const rate = (value) => (value >= 100 ? NUMBER.format(value) : RATE.format(value));
export const compact = (value) => COMPACT.format(value);
export const money = (value) => MONEY.format(Number(value));
export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${number(value)} s`;
}

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  return value < 1e6 ? `${Math.round(value / 1000)} kB` : `${(value / 1e6).toFixed(1)} MB`;
}

/** Length of a budget's window: `minute`, `hour`, `6 hours`. */
export function span(lengthS) {
  for (const [unit, unitS] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (lengthS % unitS === 0) return lengthS === unitS ? unit : `${lengthS / unitS} ${unit}s`;
  }
  return `${lengthS} s`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const SHORT = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Local: the time of today, or day and time. */
export function clock(at) {
  const date = new Date(at);
  return date.toDateString() === new Date().toDateString() ? CLOCK.format(date) : `${DAY.format(date)} ${SHORT.format(date)}`;
}

/** A <time> in the reader's zone that says UTC when it is pointed at. */
export function timeOf(at) {
  const node = el("time");
  showTime(node, at);
  return node;
}

export function showTime(node, at) {
  const iso = new Date(at).toISOString();
  say(node, clock(at));
  if (node.getAttribute("datetime") === iso) return;
  node.setAttribute("datetime", iso);
  node.title = `${iso.slice(0, 10)} ${iso.slice(11, 19)} UTC`;
}

/** Ids of ours are told apart by their beginning; those that people chose are shown as far as they go. */
export const shortId = (id) => (/^[0-9a-f]{8}-[0-9a-f-]{27}$/.test(id) ? id.slice(0, 8) : id);

/** The last part of a URI: `manual.pdf`. */
export function fileName(uri) {
  const path = uri.split(/[?#]/, 1)[0].replace(/\/+$/, "");
  const last = path.slice(path.lastIndexOf("/") + 1);
  try {
    return decodeURIComponent(last) || uri;
  } catch {
    return last || uri;
  }
}

export const isJobHash = (hash) => hash.startsWith("#job/");
export const jobHash = (jobId) => `#job/${encodeURIComponent(jobId)}`;

/** A link that opens a job on this page. */
export const jobLink = (jobId) => el("a", { href: jobHash(jobId), title: jobId }, shortId(jobId));
