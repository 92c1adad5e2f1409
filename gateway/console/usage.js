/** Tokens and money by tenant, and what its budget leaves. */

import { get } from "./api.js";
import { bars, drawBars } from "./chart.js";
import { byId, el, reconcile, say, sayOrHide } from "./dom.js";
import { clock, compact, counted, money, number, span } from "./words.js";

const HOURS = 24;
const HOUR_MS = 3_600_000;
const POLICIES = { reject: "more is refused", defer: "more has to wait", alert: "more is only reported" };

export async function refreshUsage() {
  const thisHour = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
  const since = thisHour - (HOURS - 1) * HOUR_MS;
  const { windows, totals, budgets } = await get("/v1/usage", { window: "hour", since: new Date(since).toISOString() });
  const hours = new Map(); // by tenant: what each hour used
  for (const { tenant, window_start: start, prompt_tokens: read, completion_tokens: written, money: cost } of windows) {
    if (!hours.has(tenant)) hours.set(tenant, Array.from({ length: HOURS }, () => ({ tokens: 0, money: 0 })));
    const hour = hours.get(tenant)[Math.floor((Date.parse(start) - since) / HOUR_MS)];
    if (hour === undefined) continue; // the clocks differ
    hour.tokens += read + written;
    hour.money += Number(cost ?? 0);
  }
  const budgetOf = new Map(budgets.map((budget) => [budget.tenant, budget]));
  const unused = budgets.filter(({ tenant }) => tenant !== "*" && !totals.some((total) => total.tenant === tenant));
  const rows = [...totals, ...unused.map(({ tenant }) => ({ tenant, calls: 0, prompt_tokens: 0, completion_tokens: 0 }))];
  rows.sort((a, b) => a.tenant.localeCompare(b.tenant));
  reconcile(byId("usage-list"), rows, (row) => row.tenant, create, (node, row) =>
    update(node, row, hours.get(row.tenant) ?? [], budgetOf.get(row.tenant) ?? budgetOf.get("*"), since));
  sayOrHide(byId("usage-empty"), rows.length ? null : "Nothing was used in 24 hours. The flow `usage` counts it.");
}

function create() {
  return el("li", {},
    el("p", { class: "heads" }, el("h3"), el("b", { class: "money" })),
    bars(HOURS),
    el("p", { class: "sum" }),
    el("ul", { class: "budget" }));
}

function update(node, row, hours, budget, since) {
  const [heads, chart, sum, windows] = node.children;
  say(heads.firstElementChild, row.tenant);
  say(heads.lastElementChild, row.money === undefined || row.money === null ? "" : money(row.money));
  const total = row.prompt_tokens + row.completion_tokens;
  drawBars(chart, Array.from({ length: HOURS }, (_, n) => hours[n]?.tokens ?? 0), {
    told: `Tokens of ${row.tenant} in each of the last ${HOURS} hours: ${number(total)} in all`,
    each: (n) => `${clock(since + n * HOUR_MS).slice(-8)}: ${number(hours[n]?.tokens ?? 0)} tokens`,
  });
  say(sum, `${counted(row.calls, "call")} · ${compact(row.prompt_tokens)} tokens read · ${compact(row.completion_tokens)} written`);
  reconcile(windows, budget?.windows ?? [], (window) => JSON.stringify(window), () => el("li", {}, el("span"), el("meter", { min: 0 })),
    (line, window) => showBudget(line, window, budget.policy, hours));
}

/** How full the window is, where whole hours tell it: one of 1 to 24 hours, aligned to 1970 as the flow counts it. */
function showBudget(line, window, policy, hours) {
  const [text, meter] = line.children;
  const limit = Number(window.tokens ?? window.money);
  const what = window.tokens === undefined || window.tokens === null ? "money" : "tokens";
  const said = what === "tokens" ? compact : money;
  const countable = window.kind === "fixed" && window.seconds % 3600 === 0 && window.seconds <= HOURS * 3600;
  const begun = Math.floor(Date.now() / 1000 / window.seconds) * window.seconds;
  const into = Math.floor((Date.now() / 1000 - begun) / 3600) + 1; // hours of the window so far
  const used = hours.slice(-into).reduce((sum, hour) => sum + hour[what], 0);
  const unit = what === "tokens" ? " tokens" : "";
  const per = `${window.kind === "sliding" ? "any " : ""}${span(window.seconds)}`;
  say(text, `${countable ? `${said(used)} of ` : ""}${said(limit)}${unit} per ${per}; ${POLICIES[policy]}`);
  meter.hidden = !countable;
  meter.max = limit || 1;
  meter.high = limit * 0.8;
  meter.optimum = 0;
  meter.value = used;
  meter.setAttribute("aria-label", text.textContent);
}
