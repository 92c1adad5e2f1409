/** The page: who asks, what is looked at, and how often. */

import { get, key, listen, Unreachable } from "./api.js";
import { startAsk } from "./ask.js";
import { refreshUploads, startDocuments } from "./documents.js";
import { byId, say, sayOrHide } from "./dom.js";
import { refreshFlows } from "./flows.js";
import { JobView } from "./job.js";
import { markChosen, refreshJobs, startJobs } from "./jobs.js";
import { refreshLetters, startLetters } from "./letters.js";
import { refreshReviews } from "./reviews.js";
import { refreshUsage } from "./usage.js";
import { clock, isJobHash } from "./words.js";

const ROUND_MS = 2000;
const narrow = matchMedia("(width < 56rem)");

let caller = null; // null: not known, or a key is missing
let lastAnswer = Date.now();
let timer = null;
let running = null; // the round that is on its way
let rounds = 0;
const job = new JobView(() => refreshJobs().then(() => markChosen(job.jobId), () => {})); // the next round says why not

/** Each part with how many rounds go by between two looks at it, and where it says that it failed. */
const parts = [
  { refresh: () => job.refresh(), every: 1, fault: null },
  { refresh: refreshJobs, every: 1, fault: "jobs-empty" },
  { refresh: refreshUploads, every: 1, fault: null },
  { refresh: () => refreshReviews(look), every: 1, fault: "reviews-empty" },
  { refresh: () => refreshLetters(look), every: 1, fault: "letters-empty" },
  { refresh: refreshFlows, every: 2, fault: "flows-empty" },
  { refresh: refreshUsage, every: 5, fault: "usage-empty" },
  { refresh: refreshReadiness, every: 1, fault: null },
];

/** Look at everything now, and from then on every 2 s as long as somebody sees it. */
async function look() {
  clearTimeout(timer);
  await running; // a round that began before is not about now
  running = round(parts);
  await running;
  running = null;
  clearTimeout(timer);
  timer = setTimeout(turn, ROUND_MS);
}

async function turn() {
  if (!document.hidden) {
    rounds += 1;
    running = round(parts.filter(({ every }) => rounds % every === 0));
    await running;
    running = null;
  }
  clearTimeout(timer);
  timer = setTimeout(turn, ROUND_MS);
}

async function round(wanted) {
  if (caller === null && !(await introduce())) return;
  await Promise.all(wanted.map(async ({ refresh, fault }) => {
    try {
      await refresh();
    } catch (error) {
      if (error instanceof Unreachable || fault === null) return; // the line at the top says it
      sayOrHide(byId(fault), error.message);
    }
  }));
  markChosen(job.jobId);
}

/** Ask who we are. False: nobody, as long as there is no key, or nobody answers. */
async function introduce() {
  if (byId("key-dialog").open) return false;
  try {
    caller = await get("/v1/me");
  } catch (error) {
    return false;
  }
  document.body.dataset.sees = caller.tenant === "*" ? "all" : "own";
  say(byId("caller"), caller.open ? "open to this machine" : caller.tenant === "*" ? "all tenants" : `tenant ${caller.tenant}`);
  byId("forget-key").hidden = key.get() === null;
  return true;
}

async function refreshReadiness() {
  let trouble = null;
  try {
    await get("/readyz");
  } catch (error) {
    if (error instanceof Unreachable) return;
    trouble = `${error.message} What is shown is what the gateway knew; it goes on by itself.`;
  }
  showLink(trouble === null ? "live" : "troubled", trouble);
}

/** How it stands with the gateway: a word at the top, and a sentence where there is trouble. */
function showLink(standing, trouble = null) {
  const words = { live: "live", troubled: "not ready", gone: "reconnecting" };
  const link = byId("link");
  say(link, words[standing]);
  link.dataset.link = standing;
  sayOrHide(byId("trouble"), trouble);
}

function askForKey() {
  caller = null;
  const dialog = byId("key-dialog");
  if (dialog.open) return;
  sayOrHide(byId("key-fault"), key.get() === null ? null : "The gateway does not know this key.");
  key.forget();
  byId("key").value = "";
  dialog.showModal();
}

function startKey() {
  const dialog = byId("key-dialog");
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // there is nothing to see without a key
  byId("key-form").addEventListener("submit", () => {
    key.set(byId("key").value.trim());
    setTimeout(look); // once the dialog is closed
  });
  byId("forget-key").addEventListener("click", () => {
    key.forget();
    location.reload();
  });
}

/** `#job/ID` shows a job; any other hash leaves it, and on a narrow screen shows the lists again. */
async function route() {
  const { hash } = location;
  const isJob = isJobHash(hash);
  document.body.dataset.view = isJob ? "job" : "lists";
  if (!isJob) return;
  const chosen = job.choose(decodeURIComponent(hash.slice("#job/".length)));
  markChosen(job.jobId);
  await chosen;
  if (!narrow.matches) return;
  byId("job-title").focus();
  scrollTo(0, 0);
}

listen({
  reached: () => {
    lastAnswer = Date.now();
    if (byId("link").dataset.link === "gone") showLink("live");
  },
  unreachable: () => showLink("gone", `The gateway does not answer. What is shown is as of ${clock(lastAnswer)}; it is asked again every 2 seconds.`),
  keyNeeded: askForKey,
});
startKey();
startAsk(look);
startDocuments(look);
startJobs(look);
startLetters(look);
addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => document.hidden || look());
await look();
await route();
