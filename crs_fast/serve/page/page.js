// The chat page: sends the conversation to /v1/respond and shows the turn as its events arrive.
"use strict";

const $ = (id) => document.getElementById(id);
const MOST_MESSAGES = 150; // the server takes 200 by default; the model reads fewer
const STAGES = [["queue", "queue"], ["prefill", "reading"], ["rank", "items"], ["write", "reply"]];

let conversation = newConversation();
let running = null; // the AbortController of the turn in progress
let ended = Promise.resolve(); // when that turn has ended

function newConversation() {
  // randomUUID is missing where the page came over plain HTTP from another machine.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const name = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { name, messages: [], excluded: new Map() };
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(text) {
  $("status").textContent = text; // read out by screen readers
}

/* ---- the server ---- */

async function api(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401 && (await askForToken())) return api(path, options);
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail ?? `the server answered with status ${response.status}`);
  }
  return response;
}

let asking = null; // two requests that both lack a token ask once

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = $("token-dialog");
    const done = (token) => {
      dialog.close();
      asking = null;
      if (token) sessionStorage.setItem("token", token);
      resolve(Boolean(token));
    };
    $("token-form").onsubmit = (event) => { event.preventDefault(); done($("token").value.trim()); };
    $("token-cancel").onclick = () => done("");
    dialog.oncancel = () => done("");
    $("token").value = "";
    dialog.showModal();
  });
  return asking;
}

async function* serverEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [, name, data] = /^event: (.*)\ndata: (.*)$/.exec(block);
      yield [name, JSON.parse(data)];
    }
  }
}

/* ---- one turn ---- */

async function respond() {
  const controller = new AbortController();
  const mine = conversation;
  running = controller;
  const forced = $("mode").value !== "";
  const bubble = addMessage("assistant", "");
  bubble.element.classList.add("writing");
  $("send").textContent = "Stop";
  let text = "", shown = [];
  try {
    const response = await api("v1/respond", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: controller.signal,
      body: JSON.stringify({
        messages: mine.messages.slice(-MOST_MESSAGES),
        mode: $("mode").value || null,
        num_items: Math.min(Math.max(Number($("count").value) || 5, 1), 50),
        exclude: [...mine.excluded.keys()],
        groups: $("group").value ? [$("group").value] : [],
        repeat_named: $("repeat").checked,
        conversation: mine.name,
        stream: true,
      }),
    });
    for await (const [name, data] of serverEvents(response)) {
      if (name === "ranked") {
        shown = data.items.map((item) => item.id); // not to be recommended again
        showTurn(mine, { ...data, forced });
        bubble.who.append(make("span", "tag", data.mode === "rec" ? "recommends" : "talks"));
        if (data.items.length) say(`${data.items.length} items. First: ${data.items[0].title}.`);
      } else if (name === "text") {
        text += data.delta;
        bubble.text.textContent = text;
        scrollDown();
      } else if (name === "done") {
        finish(mine, bubble, { ...data, forced });
      } else if (name === "error") {
        throw new Error(data.detail);
      }
    }
  } catch (error) {
    const stopped = controller.signal.aborted;
    if (stopped && text) mine.messages.push({ role: "assistant", content: text, shown });
    else bubble.element.classList.add("failed");
    bubble.text.textContent = stopped ? text || "Stopped." : `No answer: ${error.message}`;
    say(bubble.text.textContent);
  } finally {
    bubble.element.classList.replace("writing", "done");
    if (running === controller) {
      running = null;
      $("send").textContent = "Send";
    }
  }
}

function finish(mine, bubble, answer) {
  const shown = answer.items.map((item) => item.id);
  mine.messages.push({ role: "assistant", content: answer.text, shown });
  const titles = answer.named.map((id) => answer.titles[id]);
  showReply(bubble.text, answer.text || "(no words)", titles);
  showTurn(mine, answer);
  say(`Reply: ${answer.text}`);
  scrollDown();
}

function showReply(element, text, titles) {
  // The titles of named items stand out; everything is text, never HTML.
  element.textContent = "";
  let rest = text;
  while (rest) {
    let at = -1, title = "";
    for (const candidate of titles) {
      const found = candidate ? rest.indexOf(candidate) : -1;
      if (found >= 0 && (at < 0 || found < at)) [at, title] = [found, candidate];
    }
    if (at < 0) break;
    element.append(rest.slice(0, at), make("strong", "", title));
    rest = rest.slice(at + title.length);
  }
  element.append(rest);
}

/* ---- what is shown of a turn ---- */

let shownTurn = null; // shown once more when an item is excluded

// What is known of a turn: its ranking first, then its whole answer, which holds the same and more.
function showTurn(mine, turn) {
  shownTurn = turn;
  document.querySelector("main").classList.add("with-turn");
  $("turn").hidden = false;
  showIntent(turn);
  const named = new Set(turn.named ?? []);
  const best = turn.items[0]?.score ?? 0;
  $("items").replaceChildren(
    ...turn.items.map((item, at) => itemRow(mine, item, at + 1, best, named)));
  $("scale").hidden = turn.items.length === 0;
  $("no-items").hidden = turn.items.length > 0;
  showRemoved(mine, turn);
  showLatency(turn);
}

function showIntent({ mode, forced, rec_probability: probability }) {
  const percent = Math.round(100 * probability);
  $("meter").setAttribute("aria-valuenow", percent);
  $("meter").setAttribute("aria-valuetext", `${percent} percent`);
  $("meter").firstElementChild.style.width = `${percent}%`;
  const chosen = mode === "rec"
    ? `Recommends (probability ${percent}\u00a0%)`
    : `Talks (recommending has probability ${percent}\u00a0%)`;
  $("intent-text").textContent = forced ? `${chosen}, as the options say.` : `${chosen}.`;
}

function itemRow(mine, item, rank, best, named) {
  const out = mine.excluded.has(item.id);
  const row = make("li", out ? "item out" : "item");
  const body = make("div");
  const why = make("div", "why");
  const copied = item.named_before;
  why.append(make("span", copied ? "tag copied" : "tag", copied ? "copied" : "new"));
  if (named.has(item.id)) why.append(make("span", "", "in the reply"));
  why.append(make("span", "score", `score ${item.score.toFixed(2).replace("-", "\u2212")}`));
  const bar = make("div", "bar");
  bar.setAttribute("aria-hidden", "true");
  bar.append(make("div"));
  bar.firstElementChild.style.width = `${100 * Math.exp(item.score - best)}%`;
  body.append(make("div", "title", item.title), why, bar);
  const button = make("button", "quiet", out ? "Undo" : "Exclude");
  button.type = "button";
  button.setAttribute("aria-label", `${out ? "Allow" : "Exclude"} ${item.title}`);
  button.dataset.item = item.id;
  button.onclick = () => toggle(item.id, item.title);
  row.append(make("span", "rank", `${rank}`), body, button);
  return row;
}

function toggle(id, title) {
  const { excluded } = conversation;
  const removed = excluded.delete(id);
  if (!removed) excluded.set(id, title);
  say(removed ? `${title} is allowed again.` : `${title} is excluded from the next answers.`);
  if (shownTurn) showTurn(conversation, shownTurn);
  // The list was made anew: give the focus back to the button that was used.
  const again = [...document.querySelectorAll("[data-item]")].find((e) => e.dataset.item === id);
  (again ?? $("message")).focus();
}

function showRemoved(mine, turn) {
  const named = turn.mode === "rec" ? turn.already_named : [];
  const chips = named.map((id) => chip(turn.titles[id] ?? id, "named or shown"));
  for (const [id, title] of mine.excluded) {
    const undo = make("button", "", "undo");
    undo.type = "button";
    undo.dataset.item = id;
    undo.setAttribute("aria-label", `Allow ${title}`);
    undo.onclick = () => toggle(id, title);
    const unknown = turn.unknown_items.includes(id);
    chips.push(chip(title, unknown ? "no longer in the catalogue" : "excluded", undo));
  }
  $("removed-items").replaceChildren(...chips);
  $("removed").hidden = chips.length === 0;
  $("again").hidden = !turn.items.some((item) => mine.excluded.has(item.id));
}

function chip(title, why, ...rest) {
  const element = make("li", "chip", title);
  element.append(make("small", "", why), ...rest);
  return element;
}

function showLatency({ timings, usage, catalogue_version: version }) {
  $("latency").hidden = !timings;
  $("total").textContent = timings ? `${Math.round(timings.total_ms)} ms` : "…";
  if (!timings) return;
  $("stages").replaceChildren();
  $("figures").replaceChildren();
  for (const [key, label] of STAGES) {
    const milliseconds = timings[`${key}_ms`];
    const colour = key === "rank" ? "rank-stage" : key;
    const part = make("div", colour);
    part.style.flexGrow = milliseconds;
    $("stages").append(part);
    const text = make("span", "stage");
    text.append(make("span", `dot ${colour}`), `${label} ${Math.round(milliseconds)} ms`);
    $("figures").append(text);
  }
  const tokens = `${usage.prompt_tokens} tokens of context (${usage.cached_tokens} from the cache), `
    + `${usage.completion_tokens} written`;
  $("figures").append(make("div", "", tokens), make("div", "", `catalogue version ${version}`));
}

/* ---- the conversation ---- */

function addMessage(role, text) {
  $("empty").hidden = true;
  const element = make("li", `message ${role}`);
  const who = make("div", "who", role === "user" ? "You" : "Recommender");
  const paragraph = make("p", "", text);
  element.append(who, paragraph);
  $("log").append(element);
  scrollDown();
  return { element, who, text: paragraph };
}

function scrollDown() {
  $("log").lastElementChild.scrollIntoView({ block: "end" });
}

async function send(text) {
  if (!text.trim()) return;
  await stop(); // what was written of the reply so far stands before this message
  conversation.messages.push({ role: "user", content: text.trim() });
  addMessage("user", text.trim());
  $("message").value = "";
  grow();
  ended = respond();
}

async function stop() {
  running?.abort();
  await ended;
}

async function restart() {
  await stop();
  conversation = newConversation();
  shownTurn = null;
  $("log").replaceChildren();
  $("turn").hidden = true;
  document.querySelector("main").classList.remove("with-turn");
  $("empty").hidden = false;
  say("A new conversation.");
  $("message").focus();
}

async function answerAgain() {
  await stop();
  const { messages } = conversation;
  if (messages.at(-1)?.role === "assistant") messages.pop();
  $("log").lastElementChild?.remove();
  $("message").focus();
  ended = respond();
}

function grow() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

function suggest(texts) {
  $("suggestions").replaceChildren(...texts.map((text) => {
    const button = make("button", "quiet", text);
    button.type = "button";
    button.onclick = () => { send(text); $("message").focus(); };
    const entry = make("li");
    entry.append(button);
    return entry;
  }));
}

/* ---- start ---- */

$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (running && !$("message").value.trim()) running.abort();
  else send($("message").value);
};
$("message").oninput = grow;
$("message").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send($("message").value);
};
document.onkeydown = (event) => {
  if (event.key !== "Escape") return;
  if ($("options").open) { $("options").open = false; $("options").firstElementChild.focus(); }
  else running?.abort();
};
$("settings").onsubmit = (event) => event.preventDefault();
$("restart").onclick = restart;
$("again").onclick = answerAgain;

function showCatalogue({ groups, examples }) {
  $("groups").hidden = groups.length === 0;
  $("group").append(...groups.map((name) => new Option(name, name)));
  const [first] = examples;
  suggest(["Hi! I need something for tonight.", ...examples.slice(1).map((title) =>
    `I loved ${title}. What else could I like?`), `Is there something like ${first}?`]);
}

$("message").focus();
try {
  const models = await (await api("v1/models")).json();
  $("model").textContent = models.data[0].id;
  showCatalogue(await (await api("catalogue")).json());
} catch (error) {
  say(error.message);
}
