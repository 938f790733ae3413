// The Queue tab: asks /fastsd/v1 once a second while somebody looks, and shows what it says. Texts are set as text.
const at = (path) => new URL(path, document.baseURI).href;
const list = element.querySelector(".queue-list"), over = element.querySelector(".queue-over");
const head = element.querySelector(".queue-state"), trouble = element.querySelector(".queue-trouble");
const pause = element.querySelector(".queue-pause");
const rows = new Map();
let paused = false, shownOver = "", looks = 0;

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, method = "GET", body) {
  const asked = { method, headers: body ? { "content-type": "application/json" } : {} };
  if (body) asked.body = JSON.stringify(body);
  const answer = await fetch(at("fastsd/v1/" + path), asked);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.detail || `The server answered ${answer.status}.`);
  return said;
}

function tell(text) {
  trouble.textContent = text;
  trouble.hidden = !text;
}

async function act(path, method, body) {
  tell("");
  try { await ask(path, method, body); } catch (error) { tell(error.message); }
  await look();
}

function seconds(s) {
  if (s === null || s === undefined) return "";
  if (s < 90) return `about ${Math.max(1, Math.round(s))} s`;
  return s < 5400 ? `about ${Math.round(s / 60)} min` : `about ${(s / 3600).toFixed(1)} h`;
}

function button(text, about, work) {
  const made = make("button", "queue-act", text);
  made.type = "button";
  made.title = about;
  made.setAttribute("aria-label", about);
  made.addEventListener("click", work);
  return made;
}

function newRow(id) {
  const row = make("li", "queue-row");
  row.dataset.job = id;
  const picture = make("span", "queue-picture");
  const middle = make("div", "queue-middle");
  const prompt = make("div", "queue-prompt"), about = make("div", "queue-about");
  const bar = make("div", "queue-bar"), fill = make("i");
  bar.append(fill);
  middle.append(prompt, about, bar);
  const acts = make("div", "queue-acts");
  const parts = { row, picture, prompt, about, bar, fill, acts, state: "", stamp: "", place: 0, last: 0 };
  parts.up = button("↑", "Draw one place sooner", () => act(`jobs/${id}/move`, "POST", { place: parts.place - 1 }));
  parts.down = button("↓", "Draw one place later", () => act(`jobs/${id}/move`, "POST", { place: parts.place + 1 }));
  parts.front = button("To front", "Draw it next", () => act(`jobs/${id}/move`, "POST", { place: 1 }));
  parts.after = button("Stop after this picture", "Finish the picture in work, then end the job",
    () => act(`jobs/${id}/stop-after-picture`, "POST"));
  parts.cancel = button("Cancel", "End this job now; finished pictures stay", () => act(`jobs/${id}`, "DELETE"));
  acts.append(parts.front, parts.up, parts.down, parts.after, parts.cancel);
  row.append(picture, middle, acts);
  return parts;
}

function preview(parts, job, stamp) {
  if (parts.stamp === stamp) return;
  parts.stamp = stamp;
  const image = new Image();
  image.alt = "";
  image.onload = () => parts.picture.replaceChildren(image);
  image.src = at(`${job.url.slice(1)}/preview?at=${encodeURIComponent(stamp)}`);
}

function show(parts, job, waiting) {
  const draws = job.state === "drawing";
  parts.place = job.place;
  parts.row.classList.toggle("drawing", draws);
  parts.prompt.textContent = job.prompt.trim() || "(no prompt)";
  parts.prompt.title = job.prompt;
  const many = job.count === 1 ? "1 picture" : `${job.pictures.length} of ${job.count} pictures`;
  const where = draws ? `step ${job.step} of ${job.steps}` : `place ${job.place} of ${waiting}`;
  const ready = seconds(job.eta_s);
  parts.about.textContent = [where, job.kind, many, job.model, ready && (draws ? `${ready} left` : `ready in ${ready}`)]
    .filter(Boolean).join(" · ");
  parts.bar.hidden = !draws;
  parts.fill.style.width = `${(100 * job.share).toFixed(1)}%`;
  parts.up.hidden = parts.down.hidden = parts.front.hidden = draws || waiting < 2;
  parts.up.disabled = parts.front.disabled = job.place <= 1;
  parts.down.disabled = job.place >= waiting;
  parts.after.hidden = !draws || job.count === 1;
  if (draws && looks % 2 === 0) preview(parts, job, `${job.created_s}-${job.step}`);
}

function showAll(queue) {
  paused = queue.paused;
  pause.textContent = paused ? "Resume" : "Pause";
  const others = queue.waiting + queue.drawing - queue.jobs.length;
  const words = [];
  if (paused) words.push("Paused");
  words.push(queue.drawing ? `${queue.drawing} drawing` : "nothing is being drawn", `${queue.waiting} waiting`);
  if (others) words.push(`${others} of other users`);
  head.textContent = words.join(" · ");
  const there = new Set(queue.jobs.map((job) => job.id));
  for (const [id, parts] of rows) if (!there.has(id)) { parts.row.remove(); rows.delete(id); }
  queue.jobs.forEach((job, number) => {
    if (!rows.has(job.id)) rows.set(job.id, newRow(job.id));
    const parts = rows.get(job.id);
    show(parts, job, queue.waiting);
    if (list.children[number] !== parts.row) list.insertBefore(parts.row, list.children[number] || null);
  });
  element.querySelector(".queue-empty").hidden = queue.jobs.length > 0;
}

async function showOver() {
  const found = await ask("jobs");
  const last = found.jobs.filter((job) => ["done", "stopped", "failed"].includes(job.state)).slice(0, 8);
  const key = last.map((job) => job.id).join();
  if (key === shownOver) return;
  shownOver = key;
  over.replaceChildren(...last.map((job) => {
    const item = make("li", `queue-past ${job.state}`);
    const picture = make("span", "queue-picture");
    preview({ picture, stamp: "" }, job, `${job.created_s}-over`);
    const words = job.state === "failed" && job.error ? job.error.message : `${job.state} · ${job.pictures.length} of ${job.count}`;
    const text = make("div", "queue-middle");
    text.append(make("div", "queue-prompt", job.prompt.trim() || "(no prompt)"), make("div", "queue-about", words));
    item.append(picture, text);
    return item;
  }));
  element.querySelector(".queue-past-head").hidden = last.length === 0;
}

let before = "";
async function look() {
  try {
    const queue = await ask("queue");
    showAll(queue);
    looks += 1;
    const now = queue.jobs.map((job) => job.id).join();
    if (now !== before || looks === 1) { before = now; await showOver(); }
    if (trouble.dataset.lost) { delete trouble.dataset.lost; tell(""); }
  } catch (error) {
    trouble.dataset.lost = "1";
    tell(`The queue cannot be seen: ${error.message}`);
  }
}

pause.addEventListener("click", () => act(paused ? "queue/resume" : "queue/pause", "POST"));
async function watchOn() {
  if (!element.isConnected) return;
  if (element.offsetParent !== null && document.visibilityState === "visible") await look();
  setTimeout(watchOn, 1000);
}
watchOn();
