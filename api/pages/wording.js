// How states, outcomes and numbers are said, and how an element is made. Text only ever goes in as text.

export const ENDED = new Set(["completed", "not_analysable", "cancelled", "failed"]);
export const STAGES = ["load", "roi", "unet", "aanet", "fuse", "write"];

const STATES = {
  receiving: "Receiving",
  queued: "Waiting",
  running: "Running",
  delivering: "Delivering",
  completed: "Completed",
  not_analysable: "Not analysable",
  cancelled: "Cancelled",
  failed: "Failed",
};
const STAGE_WORDS = {
  load: "Reading",
  roi: "Finding the lungs",
  unet: "Slice by slice",
  aanet: "Along the arteries",
  fuse: "Fusing",
  write: "Writing results",
};

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const stateWord = (state) => STATES[state] ?? state;
export const stageWord = (stage) => STAGE_WORDS[stage] ?? stage;

export function progressText(job) {
  if (job.state === "running" && job.stage) return stageWord(job.stage);
  if (job.deliveries_parked > 0) return job.deliveries_parked === 1 ? "1 delivery parked" : `${job.deliveries_parked} deliveries parked`;
  if (job.state === "queued" && job.queue_position !== null) {
    if (job.queue_position === 0) return "Next in line";
    return job.queue_position === 1 ? "1 study before it" : `${job.queue_position} studies before it`;
  }
  return stateWord(job.state);
}

export function resultText(job) {
  if (job.state === "failed") return "Failed";
  if (job.outcome === "embolus_found") return job.lesion_count === 1 ? "1 embolus" : `${job.lesion_count} emboli`;
  if (job.outcome === "no_embolus") return "No embolus found";
  if (job.outcome === "not_analysable") return "Not analysable";
  return "";
}

export const number = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);

export function timeText(iso) {
  const time = new Date(iso);
  const today = new Date().toDateString() === time.toDateString();
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
  return today ? clock : `${time.toLocaleDateString([], { day: "numeric", month: "short" })}, ${clock}`;
}

export function durationText(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${number(seconds / 3600, 1)} h`;
}

export function shortUid(uid) {
  return uid.length > 26 ? `${uid.slice(0, 8)}…${uid.slice(-14)}` : uid;
}

export function studyText(job) {
  if (job.study_instance_uid) return shortUid(job.study_instance_uid);
  return `${job.input_kind === "nrrd" ? "NRRD" : "NIfTI"} ${job.id.slice(0, 8)}`;
}
export const senderText = (job) => job.calling_ae_title ?? { rest: "Upload", dicomweb: "DICOMweb" }[job.source] ?? "–";

export async function problemText(response) {
  try {
    const problem = await response.json();
    return [problem.detail, problem.remedy].filter(Boolean).join(". ");
  } catch {
    return `The server answered ${response.status}`;
  }
}
