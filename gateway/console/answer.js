/** An answer: as it is written, and once it is complete, with its citations. */

import { announce, byId, el, reconcile, say, sayOrHide } from "./dom.js";
import { fileName, shortId } from "./words.js";

/** Pieces arrive many times a frame; the page changes once a frame, and what is on it already is not touched. */
export class Answer {
  #callId = null;
  #written = "";
  #pending = "";
  #unsaid = ""; // of a sentence that screen readers have not been told
  #frame = null;
  #result = null;

  clear() {
    this.#callId = null;
    this.#result = null;
    this.#begin();
    byId("answer-text").replaceChildren();
    byId("citations").replaceChildren();
    byId("citations-title").hidden = true;
    byId("job-answer").hidden = true;
    sayOrHide(byId("answer-note"), null);
  }

  #begin() {
    this.#written = this.#pending = this.#unsaid = "";
  }

  /** Nothing is written yet, or it goes on: `note` says which. */
  await(note) {
    if (this.#result !== null) return;
    byId("job-answer").hidden = false;
    sayOrHide(byId("answer-note"), this.#callId === null ? note : null);
  }

  /** The job ended without an answer; what was written of one is no answer. */
  end() {
    if (this.#result === null) this.clear();
  }

  delta({ call_id: callId, number, text }) {
    if (number === 0) {
      this.#callId = callId;
      this.#result = null;
      this.#begin();
      byId("answer-text").replaceChildren();
    } else if (callId !== this.#callId) {
      return; // of a call that another one has replaced
    }
    this.#pending += text;
    this.#frame ??= requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    this.#frame = null;
    if (this.#result !== null || this.#callId === null) return;
    byId("job-answer").hidden = false;
    sayOrHide(byId("answer-note"), null);
    const place = byId("answer-text");
    place.classList.add("writing");
    if (place.firstChild === null) place.append("");
    place.firstChild.appendData(this.#pending);
    this.#written += this.#pending;
    this.#unsaid += this.#pending;
    this.#pending = "";
    const end = this.#unsaid.search(/[.!?\n](?=\s[^.!?]*$)/);
    if (end >= 0) {
      announce(this.#unsaid.slice(0, end + 1).trim());
      this.#unsaid = this.#unsaid.slice(end + 1);
    }
  }

  /** The result holds, whatever was written before. */
  complete(result) {
    if (this.#result?.text === result.text && this.#result.completed_at === result.completed_at) return;
    const unsaid = result.text.startsWith(this.#written) ? this.#unsaid + result.text.slice(this.#written.length) : result.text;
    if (this.#callId !== null) announce(unsaid.trim() || "The answer is complete.");
    this.#result = result;
    byId("job-answer").hidden = false;
    const cut = result.finish_reason === "length" ? "The answer was cut off at the request's limit of tokens." : null;
    sayOrHide(byId("answer-note"), cut);
    const place = byId("answer-text");
    place.classList.remove("writing");
    place.replaceChildren(...withMarkers(result.text, result.citations));
    byId("citations-title").hidden = result.citations.length === 0;
    reconcile(byId("citations"), result.citations, (citation) => `${citation.number} ${citation.chunk_id}`, citationOf);
  }
}

/** The text, with each `[number]` of a citation as a button that opens it. */
function* withMarkers(text, citations) {
  const known = new Map(citations.map((citation) => [String(citation.number), citation]));
  for (const [n, part] of text.split(/\[(\d+)\]/).entries()) {
    const citation = n % 2 ? known.get(part) : undefined;
    if (citation === undefined) yield n % 2 ? `[${part}]` : part;
    else yield el("button", { type: "button", class: "marker", title: placeOf(citation), "aria-label": `Citation ${part}: ${placeOf(citation)}`, onclick: () => open(part) }, part);
  }
}

const documentOf = (citation) => (citation.uri ? fileName(citation.uri) : citation.document_id);
const placeOf = (citation) => [documentOf(citation), citation.label].filter(Boolean).join(", ");

function citationOf(citation) {
  return el("li", { "data-number": citation.number }, el("details", {},
    el("summary", {},
      el("span", { class: "number" }, String(citation.number)),
      el("span", { class: "document" }, documentOf(citation)),
      el("span", { class: "place" }, citation.label ?? ""),
      el("span", { class: "score", title: "Cosine similarity of passage and question" }, citation.score.toFixed(2))),
    el("blockquote", {}, citation.text),
    el("p", { class: "hint ids", title: citation.uri ?? false }, `chunk ${shortId(citation.chunk_id)} of document ${shortId(citation.document_id)}`)));
}

function open(number) {
  const details = byId("citations").querySelector(`[data-number="${number}"] details`);
  details.open = true;
  details.firstElementChild.focus();
  details.scrollIntoView({ block: "nearest" });
}
