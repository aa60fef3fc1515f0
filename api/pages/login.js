// A key is typed once; the browser then holds a session that no script can read.

import { element, problemText } from "./wording.js";

const dialog = document.getElementById("login");
const form = dialog.querySelector("form");
const key = document.getElementById("key");
const message = document.getElementById("login-message");

let afterwards = null;

export function askForKey(onLoggedIn) {
  afterwards = onLoggedIn;
  if (!dialog.open) dialog.showModal();
}

function say(text) {
  message.replaceChildren(element("span", {}, text));
  message.hidden = !text;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const response = await fetch("/session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ key: key.value }),
    });
    if (!response.ok) return say(await problemText(response));
    say("");
    dialog.close();
    afterwards();
  } catch {
    say("The key did not reach the server");
  } finally {
    key.value = "";
  }
});
dialog.addEventListener("cancel", (event) => event.preventDefault()); // there is nothing behind it to see

document.getElementById("log-out").addEventListener("click", async () => {
  await fetch("/session", { method: "DELETE" });
  location.reload();
});
