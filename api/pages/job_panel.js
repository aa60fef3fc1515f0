// One study: what was found, the picture, the files, where it was sent. Live by server-sent events while it is open.

import { ENDED, STAGES, durationText, element, number, percent, problemText, progressText, resultText, senderText, stageWord, stateWord, studyText, timeText } from "./wording.js";

const panel = document.getElementById("panel");
let shownId = null;
let events = null;
let drawn = "";

export function closePanel() {
  events?.close();
  events = null;
  shownId = null;
  drawn = "";
  panel.hidden = true;
}

export async function openPanel(id, onClose) {
  if (id !== shownId) {
    closePanel();
    shownId = id;
  }
  const response = await fetch(`/segment/${encodeURIComponent(id)}`);
  if (id !== shownId) return;
  if (!response.ok) {
    panel.replaceChildren(heading("Not found", onClose), element("p", { class: "reason" }, await problemText(response)));
    panel.hidden = false;
    return;
  }
  const job = await response.json();
  draw(job, onClose);
  if (!ENDED.has(job.state) && events === null) follow(id, onClose);
}

function follow(id, onClose) {
  const source = new EventSource(`/segment/${encodeURIComponent(id)}/events`);
  events = source;
  source.addEventListener("progress", () => openPanel(id, onClose));
  source.addEventListener("end", () => {
    source.close();
    if (events === source) events = null;
    if (id === shownId) openPanel(id, onClose);
  });
}

function draw(job, onClose) {
  const now = JSON.stringify(job);
  if (now === drawn) return; // keeps the picture, the scroll position and the focus
  drawn = now;
  panel.hidden = false;
  const parts = [
    heading(studyText(job), onClose),
    verdict(job),
    stages(job),
    preview(job),
    lesions(job),
    reasons(job),
    files(job),
    deliveries(job, onClose),
    facts(job),
    actions(job, onClose),
  ];
  panel.replaceChildren(...parts.filter((part) => part !== null));
}

function heading(text, onClose) {
  return element("div", { class: "panel-head" }, element("h2", {}, text), element("button", { type: "button", class: "close", "aria-label": "Close", onclick: onClose }, "×"));
}

function verdict(job) {
  const kind = job.state === "failed" ? "failed" : (job.outcome ?? job.state);
  const title = resultText(job) || progressText(job);
  const parts = [];
  if (job.state === "running") parts.push(percent(job.progress));
  if (job.scan_probability !== null) parts.push(`probability ${percent(job.scan_probability)}`);
  if (job.clot_burden_ml) parts.push(`clot burden ${number(job.clot_burden_ml, 2)} ml`);
  if (job.deliveries_parked > 0) parts.push(progressText(job));
  else if (job.state === "delivering") parts.push("being delivered");
  return element("div", { class: "verdict", "data-kind": kind }, element("strong", {}, title), element("span", {}, parts.join(" · ")));
}

function stages(job) {
  if (!["queued", "running"].includes(job.state)) return null;
  const reached = job.state === "running" ? STAGES.indexOf(job.stage) : -1;
  const steps = STAGES.map((stage, index) =>
    element("li", { class: index < reached ? "done" : index === reached ? "now" : "later" }, stageWord(stage)));
  return element("div", {}, element("progress", { max: 1, value: job.progress, "aria-label": "Progress" }), element("ol", { class: "stages" }, ...steps));
}

function preview(job) {
  if (!job.links.preview) return null;
  const picture = element("img", { class: "preview", src: `${job.links.preview}?of=${encodeURIComponent(job.updated_at)}`, alt: "Slices with the emboli marked" });
  const frame = element("figure", {}, picture);
  picture.addEventListener("error", () => frame.remove());
  return frame;
}

function lesions(job) {
  const found = job.findings?.lesions ?? [];
  if (found.length === 0) return null;
  const head = ["", "Score", "Volume ml", "Diameter mm", "Level", "HU"];
  const rows = found.map((lesion) =>
    element("tr", {},
      element("td", { class: "quiet" }, String(lesion.id)),
      element("td", {}, element("meter", { min: 0, max: 1, value: lesion.score, "aria-hidden": "true" }), ` ${percent(lesion.score)}`),
      element("td", { class: "number" }, number(lesion.volume_ml, 2)),
      element("td", { class: "number" }, number(lesion.max_diameter_mm, 1)),
      element("td", {}, lesion.artery_level),
      element("td", { class: "number" }, number(lesion.mean_hu, 0))));
  return section("Emboli",
    element("div", { class: "scroll" },
      element("table", { class: "lesions" },
        element("thead", {}, element("tr", {}, ...head.map((text, index) => element("th", { class: [2, 3, 5].includes(index) ? "number" : null }, text)))),
        element("tbody", {}, ...rows))));
}

function reasons(job) {
  const said = job.reasons.map((reason) => element("p", { class: "reason" }, reason.text, element("code", {}, reason.code)));
  if (job.error) said.push(element("p", { class: "reason bad" }, job.error.message, element("code", {}, job.error.code)));
  if (said.length === 0) return null;
  return section(job.outcome === "not_analysable" ? "Why not" : job.error ? "What happened" : "About the image", ...said);
}

function files(job) {
  const named = { seg: "DICOM SEG", sr: "DICOM SR", report: "Report (PDF)", key_images: "Key images (zip)", mask: "Emboli (NIfTI)", artery: "Artery (NIfTI)", findings: "Findings (JSON)" };
  const links = Object.entries(named)
    .filter(([name]) => job.links[name])
    .map(([name, text]) => element("a", { class: "file", href: job.links[name], download: name === "findings" ? `${job.id}_findings.json` : true }, text));
  return links.length ? section("Files", element("div", { class: "files" }, ...links)) : null;
}

function deliveries(job, onClose) {
  if (job.deliveries.length === 0) return null;
  const rows = job.deliveries.map((delivery) =>
    element("p", { class: "delivery", "data-state": delivery.state },
      element("strong", {}, delivery.destination),
      element("span", {}, standing(delivery)),
      ...[delivery.last_error, delivery.warning, delivery.status_comment].filter(Boolean).map((said) => element("small", {}, said)),
      ["parked", "pending"].includes(delivery.state) && delivery.last_error ? act(job, onClose, "Send now", `${job.links.self}/deliveries/${delivery.id}/retry`, "POST") : null));
  return section("Sent to", ...rows);
}

function standing(delivery) {
  if (delivery.state === "delivered") return `${delivery.committed_at ? "committed" : "delivered"} ${timeText(delivery.delivered_at)}`;
  const tried = `${delivery.state}, tried ${delivery.attempts === 1 ? "once" : `${delivery.attempts} times`}`;
  return delivery.last_error && delivery.next_attempt_at ? `${tried}, again ${timeText(delivery.next_attempt_at)}` : tried;
}

function facts(job) {
  const seconds = Object.values(job.stage_seconds).reduce((sum, value) => sum + value, 0);
  const pairs = [
    ["State", stateWord(job.state)],
    ["Priority", job.priority],
    ["From", senderText(job)],
    ["Images", String(job.instance_count)],
    ["Received", new Date(job.created_at).toLocaleString()],
    ["Starts in about", job.expected_wait_s === null ? null : durationText(job.expected_wait_s)],
    ["Took", seconds ? `${number(seconds, 1)} s` : null],
    ["Attempts", job.attempts > 1 ? String(job.attempts) : null],
    ["Complete because", job.completion_reason],
    ["Study", job.study_instance_uid],
    ["Series", job.series_instance_uid],
    ["Job", job.id],
  ].filter(([, value]) => value);
  return section("Details", element("dl", {}, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
}

function act(job, onClose, text, path, method) {
  return element("button", { type: "button", onclick: async (event) => {
    event.target.disabled = true;
    const response = await fetch(path, { method });
    if (!response.ok) panel.append(element("p", { class: "reason bad" }, await problemText(response)));
    openPanel(job.id, onClose);
  } }, text);
}

function actions(job, onClose) {
  const made = [];
  if (["receiving", "queued", "running"].includes(job.state)) made.push(act(job, onClose, "Cancel", job.links.self, "DELETE"));
  if (job.can_retry) made.push(act(job, onClose, "Try again", `${job.links.self}/retry`, "POST"));
  if (!job.can_retry && job.deliveries_parked > 0) made.push(act(job, onClose, "Send again", `${job.links.self}/retry`, "POST"));
  return made.length ? element("div", { class: "actions" }, ...made) : null;
}

function section(title, ...children) {
  return element("section", {}, element("h3", {}, title), ...children);
}
