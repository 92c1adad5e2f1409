/** Calls of the gateway: the key, the faults, uploads with progress, and a job's events. */

const KEY = "headrace.key";

/** The gateway's own answer that something cannot be done (RFC 9457). Its message is for a reader. */
export class Problem extends Error {
  constructor(status, body, retryAfter) {
    const fields = (body.errors ?? []).map(({ field, message }) => (field ? `${field}: ${message}` : message));
    super([body.detail || body.title || `The gateway answered ${status}.`, ...fields].join(" "));
    this.status = status;
    this.retryAfterS = Number(retryAfter) || null;
  }
}

/** Nobody answered. */
export class Unreachable extends Error {
  constructor() {
    super("The gateway does not answer.");
  }
}

/** Whoever is told of every answer: whether one came, and whether a key is missing. */
const listeners = { reached: () => {}, unreachable: () => {}, keyNeeded: () => {} };

export function listen(told) {
  Object.assign(listeners, told);
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

const authorization = () => (key.get() === null ? {} : { Authorization: `Bearer ${key.get()}` });

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers: { ...authorization(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    listeners.unreachable();
    throw new Unreachable();
  }
  listeners.reached();
  if (response.ok) return response;
  throw problem(response.status, await response.text(), response.headers.get("Retry-After"));
}

function problem(status, text, retryAfter) {
  if (status === 401) listeners.keyNeeded();
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // a proxy's page: its status says enough
  }
  return new Problem(status, body, retryAfter);
}

/** What this address says. Absent parameters are left out of the query. */
export async function get(path, query = {}, { signal } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const search = given.length ? `?${new URLSearchParams(given)}` : "";
  return (await request(path + search, { signal })).json();
}

/** Send JSON. */
export async function send(method, path, body, headers = {}) {
  const options = { method, headers };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json", ...headers };
  }
  return (await request(path, options)).json();
}

/** Send a form with a file. `progress` is told the share that is on its way, 0 to 1, which fetch cannot tell. */
export function upload(path, form, progress) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open("POST", path);
    for (const [name, value] of Object.entries(authorization())) call.setRequestHeader(name, value);
    call.upload.addEventListener("progress", (event) => event.lengthComputable && progress(event.loaded / event.total));
    call.addEventListener("load", () => {
      listeners.reached();
      if (call.status < 300) resolve(JSON.parse(call.responseText));
      else reject(problem(call.status, call.responseText, call.getResponseHeader("Retry-After")));
    });
    call.addEventListener("error", () => {
      listeners.unreachable();
      reject(new Unreachable());
    });
    call.send(form);
  });
}

const SILENCE_MS = 40_000; // the gateway says something every 15 s
const PAUSE_MS = [500, 1000, 2000, 5000];

/**
 * Everything a job says, from the beginning to its end, each thing once: a connection that breaks is taken up again
 * after the last event that came. `told(event, data)` hears them; returns when the job has ended or `signal` says so.
 */
export async function follow(path, told, signal) {
  let last = null;
  let failures = 0;
  while (!signal.aborted) {
    try {
      for await (const { id, event, data } of eventsOf(path, last, signal)) {
        failures = 0;
        if (id !== null) last = id;
        told(event, JSON.parse(data));
        if (event === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status < 500 && error.status !== 429) {
        if (error.status !== 400 || last === null) throw error;
        last = null; // a gateway that does not know our position: from the beginning
        told("restart", {});
      }
    }
    await pause(PAUSE_MS[Math.min(failures, PAUSE_MS.length - 1)], signal);
    failures += 1;
  }
}

/** The events of one connection. Ends, or throws, when it breaks or falls silent. */
async function* eventsOf(path, last, signal) {
  const connection = new AbortController();
  const stop = () => connection.abort();
  signal.addEventListener("abort", stop);
  let watchdog;
  const heard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(stop, SILENCE_MS);
  };
  try {
    heard();
    const headers = { Accept: "text/event-stream", ...(last === null ? {} : { "Last-Event-ID": last }) };
    const response = await request(path, { headers, signal: connection.signal });
    const parser = new EventParser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      yield* parser.feed(value);
    }
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", stop);
    connection.abort();
  }
}

/** text/event-stream, as the HTML standard says; `retry` is ignored. */
export class EventParser {
  #rest = "";
  #event = "";
  #data = [];
  #id = null;

  *feed(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/); // a \r at the end may be half of a \r\n
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) yield { id: this.#id, event: this.#event || "message", data: this.#data.join("\n") };
        this.#event = "";
        this.#data = [];
        continue;
      }
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") this.#event = value;
      else if (field === "data") this.#data.push(value);
      else if (field === "id") this.#id = value;
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

/** A name that nobody else has: 128 random bits. `crypto.randomUUID` is missing where a page came by plain http. */
export function unique() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
