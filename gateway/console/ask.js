/** The question. */

import { send, unique } from "./api.js";
import { byId, during } from "./dom.js";
import { nameJob } from "./names.js";
import { jobHash } from "./words.js";

export function startAsk(refresh) {
  const form = byId("ask-form");
  const question = byId("question");
  let attempt = null; // the same question sent again after a failure is one job

  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  form.elements.collection.addEventListener("input", () => {
    byId("drop-collection").textContent = form.elements.collection.value || "documents";
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    during(form.querySelector("[type=submit]"), byId("ask-fault"), async () => {
      const prompt = question.value.trim();
      if (prompt === "") throw new Error("Write a question first.");
      const body = { prompt, collection: form.elements.collection.value };
      if (form.elements.tenant.value) body.tenant = form.elements.tenant.value;
      const content = JSON.stringify(body);
      if (attempt?.content !== content) attempt = { content, key: unique() };
      const { job_id: jobId } = await send("POST", "/v1/requests", body, { "Idempotency-Key": attempt.key });
      attempt = null;
      nameJob(jobId, prompt);
      question.value = "";
      location.hash = jobHash(jobId);
      refresh();
    });
  });
}
