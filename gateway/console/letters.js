/** Dead letters: what a step gave up on, why, and a button that starts it again. */

import { get, send } from "./api.js";
import { announce, byId, during, el, reconcile, say, sayOrHide } from "./dom.js";
import { counted, jobLink, number, timeOf } from "./words.js";

const SHOWN = 50;

const pathOf = (letterId) => `/v1/dead-letters/${encodeURIComponent(letterId)}`;

export function startLetters(refresh) {
  const form = byId("letters-filter");
  form.addEventListener("change", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
}

export async function redrive(letterId) {
  await send("POST", `${pathOf(letterId)}/redrive`);
  announce("It has been started again.");
}

export async function refreshLetters(refreshAll) {
  const form = byId("letters-filter");
  const withRedriven = form.elements.redriven.checked;
  const filter = { error_class: form.elements.error_class.value, redriven: withRedriven, limit: SHOWN };
  const { dead_letters: letters, total } = await get("/v1/dead-letters", filter);
  const newest = [...letters].sort((a, b) => b.failed_at.localeCompare(a.failed_at));
  const open = withRedriven || filter.error_class ? null : total;
  if (open !== null) showCount(open);
  reconcile(byId("letters-list"), newest, (letter) => letter.id, (letter) => create(letter, refreshAll), update);
  const rest = total > letters.length ? `${counted(total - letters.length, "older one")} not shown.` : null;
  sayOrHide(byId("letters-empty"), letters.length ? rest : "No dead letters: nothing was given up.");
}

function showCount(open) {
  const count = byId("letters-count");
  say(count, open ? number(open) : "");
  count.classList.toggle("bad", open > 0);
}

function create(letter, refreshAll) {
  const fault = el("p", { class: "fault", role: "alert", hidden: true });
  const message = el("pre", { hidden: true });
  const again = el("button", { type: "button", class: "redrive" }, letter.retryable ? "Redrive" : "Redrive anyway");
  again.addEventListener("click", () => during(again, fault, async () => {
    await redrive(letter.id);
    await refreshAll();
  }));
  const show = el("button", { type: "button", class: "quiet", "aria-expanded": "false" }, "Show message");
  show.addEventListener("click", () => during(show, fault, async () => {
    if (message.hidden && !message.textContent) {
      const whole = await get(pathOf(letter.id), { message: true });
      say(message, whole.message_preview ?? "The message was too large for its dead letter.");
    }
    message.hidden = !message.hidden;
    show.setAttribute("aria-expanded", String(!message.hidden));
    say(show, message.hidden ? "Show message" : "Hide message");
  }));
  return el("li", { class: "card" },
    el("p", { class: "heads" },
      el("span", { class: "state", "data-tone": letter.error_class === "poison" ? "bad" : "troubled" }, letter.error_class),
      el("span", { class: "step" }, letter.step), timeOf(letter.failed_at)),
    el("p", { class: "reason" }, letter.message),
    el("p", { class: "hint" }, `${counted(letter.attempts, "attempt")}, ${letter.error_type}, tenant ${letter.tenant}, job `, jobLink(letter.job_id), el("span", { class: "redriven" })),
    el("p", { class: "actions" }, again, show), fault, message);
}

function update(card, letter) {
  const redriven = letter.redriven_at !== null && letter.redriven_at !== undefined;
  card.querySelector(".redrive").hidden = redriven;
  const place = card.querySelector(".redriven");
  if (redriven && !place.firstChild) place.append(", redriven at ", timeOf(letter.redriven_at));
  else if (!redriven && letter.redrives) say(place, `, redriven ${counted(letter.redrives, "time")} before`);
}
