/** Files on their way into the index: sent two at a time, then followed until they can be searched. */

import { get, Problem, upload } from "./api.js";
import { byId, el, say } from "./dom.js";
import { nameJob } from "./names.js";
import { bytes, counted, jobHash, showState, stateInWords } from "./words.js";

const AT_ONCE = 2;
const ASKED_AT_ONCE = 4; // of those under way; the browser has six connections
const SHOWN = 30;

const waiting = [];
const underWay = new Map(); // by job: the row that shows it
let sending = 0;

export function startDocuments(refresh) {
  const drop = byId("drop");
  const files = byId("files");
  byId("choose").addEventListener("click", () => files.click());
  files.addEventListener("change", () => {
    add([...files.files], refresh);
    files.value = "";
  });
  // The whole page takes files: one that misses the box would replace the page by itself.
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.remove("over");
    add([...event.dataTransfer.files], refresh);
  });
}

function add(files, refresh) {
  const { collection, tenant } = byId("ask-form").elements;
  const where = { collection: collection.value || "documents", tenant: tenant.value };
  const list = byId("uploads");
  for (const file of files) {
    const row = rowOf(file);
    list.prepend(row);
    waiting.push({ file, where, row });
  }
  while (list.childElementCount > SHOWN && list.lastElementChild.dataset.over) list.lastElementChild.remove();
  sendNext(refresh);
}

function rowOf(file) {
  return el("li", {},
    el("span", { class: "name", title: file.name }, file.name),
    el("span", { class: "state", "data-tone": "waiting" }, "waiting"),
    el("progress", { max: 1, value: 0, "aria-label": `Sending ${file.name}` }),
    el("span", { class: "detail" }, bytes(file.size)));
}

async function sendNext(refresh) {
  if (sending >= AT_ONCE || waiting.length === 0) return;
  sending += 1;
  const next = waiting.shift();
  await sendOne(next);
  sending -= 1;
  refresh();
  sendNext(refresh);
}

async function sendOne({ file, where, row }) {
  const [name, state, progress, detail] = row.children;
  const form = new FormData();
  form.append("collection", where.collection); // the fields come first: the gateway reads the form as it arrives
  if (where.tenant) form.append("tenant", where.tenant);
  form.append("file", file);
  say(state, "sending");
  state.dataset.tone = "working";
  try {
    const accepted = await upload("/v1/documents", form, (share) => (progress.value = share));
    progress.removeAttribute("value"); // from here on nobody knows how much is left
    nameJob(accepted.job_id, file.name);
    name.replaceChildren(el("a", { href: jobHash(accepted.job_id) }, file.name));
    showState(state, accepted.state);
    underWay.set(accepted.job_id, row);
  } catch (error) {
    end(row, "not sent", "bad", error.message);
    const again = el("button", { type: "button" }, "Send again");
    again.addEventListener("click", () => {
      const fresh = rowOf(file);
      row.replaceWith(fresh);
      waiting.push({ file, where, row: fresh });
      sendNext(() => {});
    });
    detail.append(" ", again);
  }
}

function end(row, said, tone, why) {
  const [, state, progress, detail] = row.children;
  say(state, said);
  state.dataset.tone = tone;
  progress.hidden = true;
  say(detail, why);
  row.dataset.over = "";
}

export async function refreshUploads() {
  const asked = [...underWay].slice(0, ASKED_AT_ONCE);
  await Promise.all(asked.map(async ([jobId, row]) => {
    underWay.delete(jobId); // and back at the end, so that all have their turn
    try {
      const job = await get(`/v1/jobs/${encodeURIComponent(jobId)}`);
      if (job.ended) return finish(row, job);
      showState(row.children[1], job.state);
      say(row.children[3], job.where);
    } catch (error) {
      if (error instanceof Problem && error.status === 404) return end(row, "unknown", "bad", "The gateway knows its job no more.");
    }
    underWay.set(jobId, row);
  }));
}

function finish(row, job) {
  if (job.state === "completed") {
    end(row, "searchable", "good", job.document ? counted(job.document.chunks, "chunk") : "");
  } else {
    end(row, stateInWords(job.state), job.state === "cancelled" ? "off" : "bad", job.user_sees);
  }
}
