/** The list of jobs, newest first. */

import { get } from "./api.js";
import { byId, el, reconcile, say, sayOrHide } from "./dom.js";
import { nameOfJob } from "./names.js";
import { clock, jobHash, shortId, showState, showTime, stateInWords } from "./words.js";

const PAGE = 50;
const MOST = 200; // rows; whoever looks for more has a filter

let shown = PAGE;

export function startJobs(refresh) {
  const form = byId("jobs-filter");
  const changed = () => {
    shown = PAGE;
    if (form.checkValidity()) refresh();
  };
  let typing;
  form.addEventListener("change", changed);
  form.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(changed, 300);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("jobs-older").addEventListener("click", () => {
    shown = Math.min(shown + PAGE, MOST);
    refresh();
  });
}

export async function refreshJobs() {
  const filter = Object.fromEntries(new FormData(byId("jobs-filter")));
  const { jobs, next } = await get("/v1/jobs", { ...filter, limit: shown });
  reconcile(byId("jobs-list"), jobs, (job) => job.job_id, create, update);
  const filtered = Object.values(filter).some(Boolean);
  sayOrHide(byId("jobs-empty"), jobs.length ? null : filtered ? "No job is like that." : "No jobs yet. Ask something, or drop a document.");
  byId("jobs-older").hidden = next === null || shown >= MOST;
}

function create(job) {
  return el("li", {}, el("a", { href: jobHash(job.job_id), class: "job-row" },
    el("span", { class: "state" }), el("span", { class: "name" }), el("span", { class: "step" }),
    el("span", { class: "tenant for-all" }), el("time")));
}

function update(row, job) {
  const link = row.firstElementChild;
  const [state, name, step, tenant, time] = link.children;
  showState(state, job.state);
  say(name, nameOfJob(job.job_id) ?? `${job.kind} ${shortId(job.job_id)}`);
  if (name.title !== job.job_id) name.title = job.job_id;
  say(step, job.step);
  say(tenant, job.tenant);
  showTime(time, job.submitted_at);
  const told = `${stateInWords(job.state)}: ${name.textContent}, ${job.step}, submitted ${clock(job.submitted_at)}`;
  if (link.getAttribute("aria-label") !== told) link.setAttribute("aria-label", told);
}

/** Mark the row of the job that is shown. */
export function markChosen(jobId) {
  for (const row of byId("jobs-list").children) {
    if (row.dataset.key === jobId) row.firstElementChild.setAttribute("aria-current", "true");
    else row.firstElementChild.removeAttribute("aria-current");
  }
}
