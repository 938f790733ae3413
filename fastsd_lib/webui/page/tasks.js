/* What this browser has ordered: its task's name is kept here, and the server is asked how far it is.
   Nothing is lost by a reload or a lost connection: the server goes on, and the name finds the task again. */
(() => {
  const fastsd = (window.fastsd = window.fastsd || {});
  const POLL_MS = 350;
  const tasks = {}; // kind -> {id, seen, lost, timer}
  const el = (id) => document.getElementById(id);
  const key = (kind) => `fastsd.${kind}.task`;

  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  }

  const forever = new Set(); // kinds that begin anew when they are finished
  const again = new Set(); // kinds that were asked for once more while they drew

  fastsd.isBusy = (kind) => !!tasks[kind];
  fastsd.isForever = (kind) => forever.has(kind);
  fastsd.forever = (kind, on) => {
    forever[on ? "add" : "delete"](kind);
    document.body.classList.toggle(`${kind}-forever`, on);
    if (on) fastsd.generate(kind);
  };
  /* Draw; while a picture is being drawn: end it first, as A1111 does. */
  fastsd.generate = (kind) => {
    if (!fastsd.isBusy(kind)) return el(`${kind}_generate`).click();
    if (forever.has(kind)) return;
    again.add(kind);
    el(`${kind}_interrupt`).click();
  };
  fastsd.interrupt = (kind) => {
    again.delete(kind);
    el(`${kind}_interrupt`).click();
  };

  fastsd.task = (kind) => tasks[kind]?.id || "";

  fastsd.begin = (kind, values) => {
    const id = newId();
    tasks[kind] = { id, seen: -1, lost: 0 };
    localStorage.setItem(key(kind), id);
    busy(kind, true);
    show(kind, { text: "Sending …", share: 0 });
    return [id, ...values.slice(1)];
  };

  /* The order was not taken, or its answer was lost on the way: the server knows which. */
  fastsd.refused = async (kind) => {
    try {
      const told = await asked(tasks[kind]);
      if (told.active || told.queued || told.completed) return fastsd.follow(kind);
    } catch (error) {
      if (!(error instanceof Refusal)) return fastsd.follow(kind);
    }
    fastsd.forever(kind, false);
    localStorage.removeItem(key(kind));
    end(kind);
  };

  class Refusal extends Error {}

  async function asked(task) {
    const answer = await fetch("internal/progress", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ id_task: task.id, id_live_preview: task.seen }),
    });
    if (!answer.ok) throw new Refusal(answer.status);
    return answer.json();
  }

  fastsd.follow = (kind) => {
    const task = tasks[kind];
    if (!task || task.timer) return;
    const ask = async () => {
      if (tasks[kind] !== task) return;
      let wait = POLL_MS;
      try {
        const told = await asked(task);
        task.lost = 0;
        if (told.live_preview) {
          task.seen = told.id_live_preview;
          preview(kind, told.live_preview);
        }
        if (told.completed || !(told.active || told.queued)) return collect(kind);
        progress(kind, told);
      } catch (error) {
        task.lost += 1;
        wait = Math.min(1000 * 2 ** Math.min(task.lost, 4), 10000);
        const sign = error.message === "401" ? "Signed out: sign in again in another tab" : "Connection lost; trying again";
        show(kind, { text: `${sign} …`, right: "the drawing goes on" });
      }
      task.timer = setTimeout(ask, wait);
    };
    task.timer = setTimeout(ask, 60);
  };

  function collect(kind) {
    show(kind, { text: "Fetching the pictures …", share: 1 });
    el(`${kind}_collect`).click();
  }

  fastsd.collected = (kind) => {
    const text = el(`html_info_${kind}`)?.querySelector("textarea")?.value;
    if (text) localStorage.setItem(`fastsd.${kind}.infotext`, text);
    end(kind);
    if (again.delete(kind) || forever.has(kind)) setTimeout(() => el(`${kind}_generate`).click(), 100);
  };

  /* After a reload: the task that was under way, or its pictures. */
  fastsd.restore = (kind) => {
    const id = localStorage.getItem(key(kind));
    if (!id || tasks[kind]) return;
    tasks[kind] = { id, seen: -1, lost: 0 };
    busy(kind, true);
    fastsd.follow(kind);
  };

  fastsd.download = (id) => setTimeout(() => el(id).querySelector("a[href]")?.click(), 300);

  function end(kind) {
    const task = tasks[kind];
    if (task?.timer) clearTimeout(task.timer);
    delete tasks[kind];
    busy(kind, false);
    show(kind, null);
    preview(kind, null);
  }

  function busy(kind, is) {
    document.body.classList.toggle(`${kind}-busy`, is);
  }

  function progress(kind, told) {
    const share = told.progress || 0;
    const text = told.queued ? told.textinfo : `${Math.round(share * 100)} %`;
    show(kind, { text, right: told.queued ? "" : told.textinfo || "", share });
  }

  function show(kind, told) {
    const place = el(`${kind}_progress`);
    if (!place) return;
    let line = place.querySelector(".line-and-bar");
    if (!line) {
      line = document.createElement("div");
      line.className = "line-and-bar";
      line.innerHTML = '<div class="line"><span></span><span></span></div><div class="bar"><i></i></div>';
      place.append(line);
    }
    line.hidden = !told;
    if (!told) return;
    const [left, right] = line.querySelectorAll("span");
    left.textContent = told.text || "";
    right.textContent = told.right || "";
    if (told.share !== undefined) line.querySelector("i").style.width = `${100 * told.share}%`;
  }

  function preview(kind, source) {
    const gallery = el(`${kind}_gallery`);
    if (!gallery) return;
    let image = gallery.querySelector(":scope > .live-preview");
    if (!source) return image?.remove();
    if (!image) {
      image = document.createElement("img");
      image.className = "live-preview";
      image.alt = "The picture as it is now";
      gallery.append(image);
    }
    image.src = source;
  }
})();
