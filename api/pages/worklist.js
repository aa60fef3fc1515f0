// The list: looked at every second and a half while something moves, more rarely when nothing does.

import { closePanel, openPanel } from "./job_panel.js";
import { askForKey } from "./login.js";
import { takeUploads } from "./upload.js";
import { ENDED, element, progressText, resultText, senderText, studyText, timeText } from "./wording.js";

const PAGE = 50;
const BUSY_MS = 1500;
const QUIET_MS = 3000;
const FILTERS = [
  ["All", () => true],
  ["In progress", (job) => !ENDED.has(job.state)],
  ["Embolus found", (job) => job.outcome === "embolus_found"],
  ["No embolus", (job) => job.outcome === "no_embolus"],
  ["Needs a look", (job) => ["not_analysable", "failed"].includes(job.state) || job.deliveries_parked > 0],
];

const body = document.getElementById("jobs");
const older = document.getElementById("older");
const health = document.getElementById("health");
const jobs = new Map(); // id -> job
const rows = new Map(); // id -> { row, said }
let chosen = 0;
let cursor = null;
let reachedOlder = false;
let timer = null;
let isLoggedOut = false;

function cells(job) {
  const result = resultText(job);
  const kind = job.state === "failed" ? "failed" : job.outcome;
  const words = element("span", { class: job.state === "running" ? null : "quiet" }, progressText(job));
  const state = job.state === "running"
    ? element("div", { class: "moving" }, words, element("progress", { max: 1, value: job.progress, "aria-label": "Progress" }))
    : words;
  return [
    element("td", { class: "time" }, timeText(job.created_at)),
    element("td", {}, element("button", { type: "button", class: "study", title: job.study_instance_uid ?? job.id }, studyText(job)), job.priority === "stat" ? element("span", { class: "tag stat-tag" }, "stat") : null),
    element("td", {}, senderText(job)),
    element("td", { class: "number" }, String(job.instance_count)),
    element("td", {}, state),
    element("td", {}, result ? element("span", { class: "tag", "data-kind": kind }, result) : null),
  ];
}

function draw() {
  const shown = [...jobs.values()].filter(FILTERS[chosen][1]).sort((a, b) => (a.created_at < b.created_at ? 1 : -1));
  const opened = decodeURIComponent(location.hash.slice(1));
  const wanted = shown.map((job) => {
    const said = JSON.stringify([job.updated_at, job.queue_position, job.deliveries_parked, new Date().toDateString()]);
    let known = rows.get(job.id);
    if (!known) {
      known = { row: element("tr", { onclick: () => (location.hash = job.id) }), said: "" };
      rows.set(job.id, known);
    }
    if (known.said !== said) {
      const hadFocus = known.row.contains(document.activeElement);
      known.row.replaceChildren(...cells(job));
      known.said = said;
      if (hadFocus) known.row.querySelector("button").focus();
    }
    known.row.classList.toggle("opened", job.id === opened);
    return known.row;
  });
  if (wanted.length !== body.children.length || wanted.some((row, index) => body.children[index] !== row)) body.replaceChildren(...wanted);
  document.getElementById("empty").hidden = shown.length > 0;
  document.querySelector("thead").hidden = shown.length === 0;
  document.getElementById("empty-title").textContent = jobs.size ? "Nothing under this filter" : "No studies yet";
  document.getElementById("empty-text").textContent = jobs.size ? "" : "Push a CT pulmonary angiogram from the PACS, or drop one above.";
  older.hidden = cursor === null;
  drawFilters();
}

function drawFilters() {
  const frame = document.getElementById("filters");
  FILTERS.forEach(([name, fits], index) => {
    let button = frame.children[index];
    if (!button) {
      button = element("button", { type: "button", onclick: () => { chosen = index; draw(); } }, name, element("span", {}));
      frame.append(button);
    }
    button.setAttribute("aria-pressed", String(index === chosen));
    button.lastChild.textContent = String([...jobs.values()].filter(fits).length);
  });
}

async function fetchPage(after) {
  const response = await fetch(`/segment?limit=${PAGE}${after ? `&cursor=${encodeURIComponent(after)}` : ""}`);
  if (response.status === 401) isLoggedOut = true;
  if (!response.ok) throw new Error(`GET /segment answered ${response.status}`);
  const page = await response.json();
  for (const job of page.jobs) jobs.set(job.id, job);
  return page.next;
}

async function look() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      const next = await fetchPage(null);
      if (!reachedOlder) cursor = next;
      draw();
      sayHealth(await (await fetch("/health/ready")).json());
    } catch {
      if (isLoggedOut) return askForKey(begin);
      sayHealth(null);
    }
  }
  const busy = [...jobs.values()].some((job) => !ENDED.has(job.state));
  timer = setTimeout(look, busy ? BUSY_MS : QUIET_MS);
}

function sayHealth(ready) {
  const status = ready === null ? "away" : ["ready", "degraded"].includes(ready.status) ? ready.status : "failing";
  const words = { ready: "Ready", degraded: "Queue away: studies wait", failing: "Cannot take studies now", away: "No connection" };
  health.dataset.status = status;
  health.textContent = words[status];
}

async function begin() {
  isLoggedOut = false;
  await look();
  if (!isLoggedOut) showOpened();
}

function showOpened() {
  const id = decodeURIComponent(location.hash.slice(1));
  document.body.classList.toggle("with-panel", Boolean(id));
  if (id) openPanel(id, close);
  else closePanel();
  draw();
  if (id && !jobs.has(id)) look();
}

function close() {
  history.replaceState(null, "", "/");
  showOpened();
}

older.addEventListener("click", async () => {
  reachedOlder = true;
  cursor = await fetchPage(cursor);
  draw();
});
document.addEventListener("visibilitychange", look);
document.addEventListener("keydown", (event) => event.key === "Escape" && close());
window.addEventListener("hashchange", showOpened);
takeUploads((job) => {
  location.hash = job.id;
  look();
});
await begin();
