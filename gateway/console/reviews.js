/** Reviews: jobs that a guard has stopped, why, and the decision. */

import { get, send } from "./api.js";
import { announce, byId, during, el, reconcile, say, sayOrHide } from "./dom.js";
import { counted, jobLink, number, timeOf } from "./words.js";

const SHOWN = 50;

const pathOf = (reviewId) => `/v1/reviews/${encodeURIComponent(reviewId)}`;

export async function refreshReviews(refreshAll) {
  const { reviews } = await get("/v1/reviews", { state: "open", limit: SHOWN });
  const count = byId("reviews-count");
  say(count, reviews.length ? `${number(reviews.length)}${reviews.length === SHOWN ? "+" : ""}` : "");
  count.classList.toggle("person", reviews.length > 0);
  reconcile(byId("reviews-list"), reviews, (review) => review.review_id, (review) => create(review, refreshAll));
  sayOrHide(byId("reviews-empty"), reviews.length ? null : "No job waits for a decision.");
}

function create(review, refreshAll) {
  const fault = el("p", { class: "fault", role: "alert", hidden: true });
  const prompt = el("pre", { hidden: true });
  const note = el("input", { name: "note", maxlength: 2000, autocomplete: "off", placeholder: "needed to reject" });
  const allowed = el("input", { name: "allowed", type: "number", min: review.value, step: 1, placeholder: String(review.value) });
  const approve = el("button", { type: "submit", class: "primary" }, "Approve");
  const reject = el("button", { type: "button" }, "Reject");
  const show = el("button", { type: "button", class: "quiet", "aria-expanded": "false" }, "Show what was asked");
  const form = el("form", { class: "decision" },
    el("label", { class: "wide" }, "Note", note),
    el("label", {}, "Limit from now on", allowed),
    approve, reject);

  const decide = (button, how, body, said) => during(button, fault, async () => {
    await send("POST", `${pathOf(review.review_id)}/${how}`, body);
    announce(said);
    await refreshAll();
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const body = {};
    if (note.value.trim()) body.note = note.value.trim();
    if (allowed.value) body.allowed = Number(allowed.value);
    decide(approve, "approve", body, "Approved: the job goes on.");
  });
  reject.addEventListener("click", () => {
    if (note.value.trim()) {
      decide(reject, "reject", { note: note.value.trim() }, "Rejected: the job ends.");
    } else {
      sayOrHide(fault, "Say in the note why it is rejected: it becomes part of the job's story.");
      note.focus();
    }
  });
  show.addEventListener("click", () => during(show, fault, async () => {
    if (prompt.hidden && !prompt.textContent) {
      const whole = await get(pathOf(review.review_id), { prompt: true });
      say(prompt, whole.prompt ?? "What was asked is no longer kept.");
    }
    prompt.hidden = !prompt.hidden;
    show.setAttribute("aria-expanded", String(!prompt.hidden));
    say(show, prompt.hidden ? "Show what was asked" : "Hide what was asked");
  }));

  const facts = [`${review.limit.replaceAll("_", " ")} ${number(review.value)}, allowed ${number(review.allowed)}`, `depth ${review.depth}`,
    counted(review.prompt_chars, "character"), `tenant ${review.tenant}`];
  return el("li", { class: "card" },
    el("p", { class: "heads" }, el("span", { class: "state", "data-tone": "person" }, "awaiting review"), timeOf(review.requested_at)),
    el("p", { class: "reason" }, review.reason),
    el("p", { class: "hint" }, `${facts.join(", ")}, job `, jobLink(review.job_id), ...(review.expires_at ? [", given up at ", timeOf(review.expires_at)] : [])),
    form, fault, el("p", { class: "actions" }, show), prompt);
}
