/** One job: its answer as it is written, the five questions about it, its timeline. */

import { follow, get, Problem, send } from "./api.js";
import { Answer } from "./answer.js";
import { announce, byId, during, el, reconcile, say, sayOrHide, sentences } from "./dom.js";
import { redrive } from "./letters.js";
import { nameOfJob } from "./names.js";
import { counted, number, seconds, shortId, showState, showTime, stateInWords, timeOf } from "./words.js";

const pathOf = (jobId) => `/v1/jobs/${encodeURIComponent(jobId)}`;

export class JobView {
  #jobId = null;
  #shown = null; // the job as it is on the page
  #stream = null; // what ends it
  #answer = new Answer();
  #soon = null; // a refresh that a status has asked for
  #changed;

  /** `changed` is called when the job has told of itself. */
  constructor(changed) {
    this.#changed = changed;
    const fault = byId("job-fault");
    const cancel = byId("job-cancel");
    cancel.addEventListener("click", () => during(cancel, fault, async () => {
      await send("DELETE", pathOf(this.#jobId));
      announce("The job is being cancelled.");
      await this.refresh();
    }));
  }

  get jobId() {
    return this.#jobId;
  }

  /** Show this job from now on; null: none. */
  async choose(jobId) {
    if (jobId === this.#jobId) return;
    this.#stream?.abort();
    this.#stream = null;
    this.#jobId = jobId;
    this.#shown = null;
    this.#answer.clear();
    byId("job-none").hidden = jobId !== null;
    byId("job-chosen").hidden = true;
    sayOrHide(byId("job-fault"), null);
    if (jobId !== null) await this.refresh();
  }

  /** Ask how it is, and follow it if it is under way. */
  async refresh({ mayFollow = true } = {}) {
    const jobId = this.#jobId;
    if (jobId === null) return;
    let job;
    let moments = null;
    try {
      job = await get(pathOf(jobId));
      if (job.updated_at !== this.#shown?.updated_at || job.state !== this.#shown.state) {
        moments = (await get(`${pathOf(jobId)}/timeline`)).timeline;
      }
    } catch (error) {
      if (jobId === this.#jobId && error instanceof Problem) this.#missing(error);
      return;
    }
    if (jobId !== this.#jobId) return; // another one was chosen meanwhile
    this.#show(job);
    if (moments !== null) showTimeline(moments);
    this.#shown = job;
    if (job.ended) await this.#showEnd(job);
    else if (mayFollow) this.#follow(jobId);
  }

  #missing(error) {
    byId("job-chosen").hidden = false;
    if (this.#shown === null) {
      say(byId("job-title"), nameOfJob(this.#jobId) ?? `Job ${shortId(this.#jobId)}`);
      say(byId("job-id"), this.#jobId);
      byId("job-chosen").dataset.missing = "";
    }
    sayOrHide(byId("job-fault"), error.status === 404 ? "The gateway knows no such job." : error.message);
  }

  async #follow(jobId) {
    if (this.#stream !== null) return;
    const stream = (this.#stream = new AbortController());
    try {
      await follow(`${pathOf(jobId)}/events`, (event, data) => this.#told(event, data), stream.signal);
    } catch (error) {
      if (!stream.signal.aborted && error instanceof Problem) sayOrHide(byId("job-fault"), error.message);
    }
    if (this.#stream !== stream) return;
    this.#stream = null;
    await this.refresh({ mayFollow: false }); // if it goes on after all, the next round follows it again
  }

  #told(event, data) {
    if (event === "delta") this.#answer.delta(data);
    else if (event === "result") this.#answer.complete(data);
    else if (event === "restart") this.#answer.clear();
    else if (event === "status") this.#soon ??= setTimeout(() => {
      this.#soon = null;
      this.refresh({ mayFollow: false });
      this.#changed();
    }, 100); // several come together
  }

  async #showEnd(job) {
    if (job.kind !== "request") return;
    if (job.result !== null) {
      this.#answer.complete(job.result);
    } else if (job.state === "completed" && job.links.result && this.#stream === null) {
      const result = await get(job.links.result).catch(() => null); // too long for the job itself
      if (result !== null && job.job_id === this.#jobId) this.#answer.complete(result);
    } else if (job.state !== "completed") {
      this.#answer.end();
    }
  }

  #show(job) {
    const article = byId("job-chosen");
    delete article.dataset.missing;
    if (this.#shown === null) sayOrHide(byId("job-fault"), null);
    if (this.#shown !== null && this.#shown.state !== job.state) announce(`The job is ${stateInWords(job.state)}.`);
    showState(byId("job-state"), job.state);
    say(byId("job-title"), nameOfJob(job.job_id) ?? `${job.kind === "document" ? "Document" : "Request"} ${shortId(job.job_id)}`);
    say(byId("job-id"), job.job_id);
    const cancel = byId("job-cancel");
    cancel.hidden = job.ended;
    cancel.disabled = job.cancel_requested;
    say(cancel, job.cancel_requested ? "Being cancelled …" : "Cancel");
    if (job.kind === "request" && !job.ended) this.#answer.await(expectation(job.state));
    say(byId("job-where"), job.where);
    say(byId("job-user-sees"), job.user_sees);
    sentences(byId("job-succeeded"), job.succeeded);
    this.#showRetry(job.retry);
    sentences(byId("job-escalate"), job.escalate);
    showFacts(job);
    article.hidden = false;
  }

  #showRetry(retry) {
    const items = retry.length ? retry : [{ dead_letter_id: "", why: "nothing" }];
    const list = byId("job-retry");
    list.classList.toggle("none", retry.length === 0);
    reconcile(list, items, (item) => item.dead_letter_id, ({ dead_letter_id: letterId }) => {
      const row = el("li", {}, el("span"));
      if (letterId) {
        const button = el("button", { type: "button" }, "Redrive");
        button.addEventListener("click", () => during(button, byId("job-fault"), async () => {
          await redrive(letterId);
          await this.refresh();
        }));
        row.append(" ", button);
      }
      return row;
    }, (row, { why }) => say(row.firstElementChild, why));
  }
}

function expectation(state) {
  switch (state) {
    case "awaiting_review": return "Stopped. A person decides whether it goes on.";
    case "deferred": return "Held back until the tenant's budget has room again.";
    case "awaiting_tool": return "The model waits for a tool.";
    case "retrying": return "It did not work at once; it is being tried again.";
    default: return "Nothing is written yet.";
  }
}

const TONE_OF_MOMENT = { submitted: "accepted", answered: "completed", indexed: "completed", "dead letter": "dead_lettered" };

function showTimeline(moments) {
  reconcile(byId("timeline"), moments, (moment) => `${moment.at}|${moment.what}|${moment.where}|${moment.detail}`, (moment) => {
    const what = el("span", { class: "state" });
    showState(what, TONE_OF_MOMENT[moment.what] ?? moment.what);
    say(what, stateInWords(moment.what));
    return el("li", {}, timeOf(moment.at), what, el("span", { class: "where" }, moment.where), el("span", { class: "detail" }, moment.detail ?? ""));
  });
}

function showFacts(job) {
  const facts = [["Tenant", job.tenant], ["Submitted", null, job.submitted_at], ["Last heard of", null, job.updated_at]];
  if (job.document) {
    facts.push(["Document", job.document.document_id], ["Chunks", number(job.document.chunks)]);
  }
  if (job.result?.model) facts.push(["Model", job.result.model]);
  if (job.usage) {
    const estimated = job.usage.estimated ? ", estimated" : "";
    facts.push(["Tokens", `${number(job.usage.prompt_tokens)} read, ${counted(job.usage.completion_tokens, "written", "written")}${estimated}`]);
  }
  if (job.timings) {
    const { queued_s: queued, retrieve_s: retrieve, infer_s: infer } = job.timings;
    facts.push(["Time", `${seconds(queued)} queued, ${seconds(retrieve)} retrieving, ${seconds(infer)} inferring`]);
  }
  reconcile(byId("facts"), facts, ([name]) => name, ([name, , at]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...(at ? [el("time")] : []))),
    (row, [, text, at]) => (at ? showTime(row.querySelector("time"), at) : say(row.lastElementChild, text)));
}
