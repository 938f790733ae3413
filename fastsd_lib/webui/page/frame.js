/* The page around the tabs: what it remembers in this browser, cards, the menu of Generate. */
(() => {
  const fastsd = (window.fastsd = window.fastsd || {});
  const el = (id) => document.getElementById(id);

  // ---------------------------------------------------------------- fields, kept over a reload

  const restored = new Set(); // what fields say before they are restored is not kept
  let saving;

  fastsd.keep = (kind, names, values) => {
    if (!restored.has(kind)) return;
    clearTimeout(saving);
    const fields = Object.fromEntries(names.map((name, number) => [name, values[number]]));
    saving = setTimeout(() => localStorage.setItem(`fastsd.${kind}.fields`, JSON.stringify(fields)), 250);
  };

  fastsd.kept = async (kind, names) => {
    await new Promise((done) => setTimeout(done, 150)); // after what the settings say fields begin with
    let fields = {};
    try {
      fields = JSON.parse(localStorage.getItem(`fastsd.${kind}.fields`)) || {};
    } catch (error) { /* damaged: begin anew */ }
    setTimeout(() => { restored.add(kind); fastsd.count(kind); }, 500);
    el(`${kind}_styles`)?.querySelector("input")?.setAttribute("placeholder", "Styles");
    return names.map((name) => (name in fields && fields[name] !== null ? fields[name] : { __type__: "update" }));
  };

  // ---------------------------------------------------------------- dark and light

  fastsd.toggleTheme = () => fastsdTheme.choose(document.body.classList.contains("dark") ? "light" : "dark");

  // ---------------------------------------------------------------- words of its own

  fastsd.say = (text) => {
    let sign = el("fastsd-says");
    if (!sign) {
      sign = document.createElement("div");
      sign.id = "fastsd-says";
      sign.setAttribute("role", "status");
      document.body.append(sign);
    }
    sign.textContent = text;
    sign.classList.add("shown");
    clearTimeout(sign.timer);
    sign.timer = setTimeout(() => sign.classList.remove("shown"), 5000);
  };

  // Icons have no words to be seen: the tooltip says them.
  document.addEventListener("pointerover", (event) => {
    const button = event.target.closest?.("button.icon");
    if (button && !button.title) button.title = button.textContent.trim();
  });

  // ---------------------------------------------------------------- cards

  document.addEventListener("input", (event) => {
    const search = event.target.closest?.(".cards-search");
    if (!search) return;
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const card of el(search.id.replace(/_search$/, "_cards")).querySelectorAll(".card")) {
      card.hidden = !words.every((word) => card.dataset.search.includes(word));
    }
  });

  document.addEventListener("click", (event) => {
    const card = event.target.closest?.(".cards .card");
    if (!card) return;
    if (card.dataset.checkpoint) {
      fastsd.checkpoint = card.dataset.checkpoint;
      for (const one of card.parentElement.children) one.removeAttribute("aria-current");
      card.setAttribute("aria-current", "true");
      return el("checkpoint_choose").click();
    }
    const kind = fastsd.kindInFront();
    const area = kind && el(`${kind}_prompt`).querySelector("textarea");
    if (area) putOrTake(area, card.dataset.put);
  });

  /* A second press takes the tag out again, as in A1111; whatever weight it has got by then. */
  function putOrTake(area, put) {
    const scroll = window.scrollY;
    const name = put.startsWith("<") ? put.replace(/:[^:]*>$/, "") : put;
    const escaped = name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const there = put.startsWith("<") ? new RegExp(`\\s*${escaped}(:[^<>]*)?>`) : new RegExp(`(,\\s*|^)${escaped}(?=,|\\s*$)`);
    const text = area.value;
    const space = !text.trim() ? "" : put.startsWith("<") ? " " : ", ";
    const told = there.test(text) ? text.replace(there, "") : text.trimEnd() + space + put;
    fastsd.replace(area, told, told.length, told.length);
    window.scrollTo({ top: scroll });
  }

  // ---------------------------------------------------------------- Generate forever

  document.addEventListener("contextmenu", (event) => {
    const button = event.target.closest?.("[id$='_generate'], [id$='_interrupt'], [id$='_skip']");
    if (!button || !/^(txt2img|img2img)_/.test(button.id)) return;
    event.preventDefault();
    const kind = button.id.split("_")[0];
    document.querySelector(".generate-menu")?.remove();
    const menu = document.createElement("div");
    menu.className = "generate-menu";
    menu.setAttribute("role", "menu");
    const choice = document.createElement("button");
    choice.type = "button";
    choice.textContent = fastsd.isForever(kind) ? "Stop generating forever" : "Generate forever";
    choice.onclick = () => fastsd.forever(kind, !fastsd.isForever(kind));
    menu.append(choice);
    document.body.append(menu);
    menu.style.left = `${Math.min(event.clientX, innerWidth - menu.offsetWidth - 8)}px`;
    menu.style.top = `${Math.min(event.clientY, innerHeight - menu.offsetHeight - 8)}px`;
    setTimeout(() => document.addEventListener("click", () => menu.remove(), { once: true }));
  });
})();
