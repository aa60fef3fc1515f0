// Files on their way to POST /segment: dropped (folders too) or chosen.

import { studyText } from "./wording.js";

const area = document.getElementById("upload");
const input = document.getElementById("files");
const bar = document.getElementById("upload-progress");
const message = document.getElementById("upload-message");
const stat = document.getElementById("stat");

function say(text, kind) {
  message.textContent = text;
  message.dataset.kind = kind;
  message.hidden = !text;
}

async function filesBelow(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a batch at a time
    if (entries.length === 0) return found;
    for (const child of entries) found.push(...(await filesBelow(child)));
  }
}

function send(files, onAccepted) {
  if (files.length === 0) return;
  const form = new FormData();
  form.append("priority", stat.checked ? "stat" : "routine");
  for (const file of files) form.append("files", file, "file"); // names stay here: they may hold a patient's
  const request = new XMLHttpRequest();
  request.open("POST", "/segment");
  request.setRequestHeader("Idempotency-Key", Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16)).join(""));
  request.responseType = "json";
  request.upload.onprogress = (event) => {
    bar.value = event.total ? event.loaded / event.total : 0;
    if (event.loaded === event.total) say("Checking the study …", "busy");
  };
  request.onloadend = () => {
    bar.hidden = true;
    const answer = request.response;
    if (request.status === 200 || request.status === 202) {
      say(`Taken in: ${studyText(answer)}`, "good");
      onAccepted(answer);
    } else if (answer && answer.detail) {
      say(["Not taken in: " + answer.detail, answer.remedy].filter(Boolean).join(". "), "bad");
    } else {
      say("The upload did not reach the server", "bad");
    }
  };
  bar.value = 0;
  bar.hidden = false;
  say(files.length === 1 ? "Sending 1 file …" : `Sending ${files.length} files …`, "busy");
  request.send(form);
}

export function takeUploads(onAccepted) {
  document.getElementById("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    send([...input.files], onAccepted);
    input.value = "";
  });
  let depth = 0; // dragenter and dragleave also come from the elements inside
  document.addEventListener("dragenter", () => area.classList.toggle("over", ++depth > 0));
  document.addEventListener("dragleave", () => area.classList.toggle("over", --depth > 0));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    area.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = entries.length ? (await Promise.all(entries.map(filesBelow))).flat() : [...event.dataTransfer.files];
    send(files, onAccepted);
  });
}
