/* The prompts: A1111's keys, token counts, and pictures that are dropped on them. */
(() => {
  const fastsd = (window.fastsd = window.fastsd || {});
  const KINDS = ["txt2img", "img2img"];
  const el = (id) => document.getElementById(id);
  const isSeen = (node) => !!node && node.offsetParent !== null;
  const kindOf = (area) => KINDS.find((kind) => area.closest(`#${kind}_prompt, #${kind}_neg_prompt`)) || "txt2img";

  /* The tab that is in front, if it draws. */
  fastsd.kindInFront = () => KINDS.find((kind) => isSeen(el(`${kind}_prompt`)));

  function replace(area, text, start, end) {
    area.focus();
    area.setSelectionRange(0, area.value.length);
    if (!document.execCommand("insertText", false, text)) {
      area.value = text; // without a way back by Ctrl+Z
      area.dispatchEvent(new Event("input", { bubbles: true }));
    }
    area.setSelectionRange(start, end);
  }
  fastsd.replace = replace;

  // ---------------------------------------------------------------- keys

  document.addEventListener("keydown", (event) => {
    const kind = fastsd.kindInFront();
    if (!kind) return;
    const arrow = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    const area = event.target.closest?.(".prompt textarea");
    const upright = event.key === "ArrowUp" || event.key === "ArrowDown";
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) fastsd.generate(kind);
    else if (event.key === "Enter" && event.altKey) fastsd.isBusy(kind) && el(`${kind}_skip`).click();
    else if (event.key === "Escape" && fastsd.isBusy(kind)) fastsd.interrupt(kind);
    else if (area && arrow && upright && (event.ctrlKey || event.metaKey)) weigh(area, arrow);
    else if (area && arrow && !upright && event.altKey) move(area, arrow);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);

  const TAG = /<(\w+):([^<>:]+)(?::([^<>]*))?>/g;
  const WORD_ENDS = /[\s.,\\/!?%^*;:{}=`~()<>[\]]/;

  /* Ctrl+Up and Ctrl+Down: the weight of the words that are marked, or of those at the cursor. */
  function weigh(area, sign) {
    const text = area.value;
    let [from, to] = [area.selectionStart, area.selectionEnd];
    for (const tag of text.matchAll(TAG)) {
      const end = tag.index + tag[0].length;
      if (from < tag.index || to > end) continue;
      const [first, ...rest] = (tag[3] ?? "1").split(":");
      const weight = parseFloat(first);
      if (Number.isNaN(weight)) return;
      const told = `<${[tag[1], tag[2], rounded(weight + 0.05 * sign), ...rest].join(":")}>`;
      return replace(area, text.slice(0, tag.index) + told + text.slice(end), tag.index, tag.index + told.length);
    }
    if (from === to) [from, to] = around(text, from);
    while (from < to && /\s/.test(text[from])) from += 1;
    while (to > from && /\s/.test(text[to - 1])) to -= 1;
    if (from === to) return;
    let weight = 1;
    let [before, after] = [from, to];
    const weighed = text[from - 1] === "(" && /^(?::([\d.]+))?\)/.exec(text.slice(to));
    if (weighed) {
      weight = weighed[1] === undefined ? 1.1 : parseFloat(weighed[1]);
      [before, after] = [from - 1, to + weighed[0].length];
    }
    weight = rounded(weight + 0.1 * sign);
    const words = text.slice(from, to);
    const told = weight === 1 ? words : `(${words}:${weight})`;
    const start = before + (weight === 1 ? 0 : 1);
    replace(area, text.slice(0, before) + told + text.slice(after), start, start + words.length);
  }

  const rounded = (weight) => Math.round(weight * 100) / 100;

  /* What stands in the brackets around a place; without any, the word there. */
  function around(text, at) {
    let depth = 0;
    for (let left = at - 1; left >= 0; left -= 1) {
      if (text[left - 1] === "\\") continue;
      if (text[left] === ")") depth += 1;
      if (text[left] === "(" && depth-- === 0) {
        const inner = /^((?:[^()\\]|\\.|\([^()]*\))*?)(?::[\d.]+)?\)/.exec(text.slice(left + 1));
        if (inner && left + 1 + inner[0].length > at - 1) return [left + 1, left + 1 + inner[1].length];
        break;
      }
    }
    let [from, to] = [at, at];
    while (from > 0 && !WORD_ENDS.test(text[from - 1])) from -= 1;
    while (to < text.length && !WORD_ENDS.test(text[to])) to += 1;
    return [from, to];
  }

  /* Alt+Left and Alt+Right: the element at the cursor changes places with its neighbour; commas part them. */
  function move(area, sign) {
    const parts = area.value.split(",");
    let [at, here] = [0, 0];
    while (here < parts.length - 1 && at + parts[here].length < area.selectionStart) at += parts[here++].length + 1;
    const other = here + sign;
    if (other < 0 || other >= parts.length) return;
    const bare = parts.map((part) => part.trim());
    const padded = (part, words) => part.replace(/^(\s*)[^]*?(\s*)$/, (_, left, right) => left + words + right);
    const [mine, theirs] = [bare[here], bare[other]];
    parts[here] = padded(parts[here], theirs);
    parts[other] = padded(parts[other], mine);
    const start = parts.slice(0, other).join(",").length + (other ? 1 : 0) + parts[other].indexOf(mine);
    replace(area, parts.join(","), start, start + mine.length);
  }

  // ---------------------------------------------------------------- token counts

  const counting = {};
  function count(kind) {
    clearTimeout(counting[kind]);
    counting[kind] = setTimeout(async () => {
      const value = (id) => el(id)?.querySelector("textarea")?.value || "";
      const styles = [...(el(`${kind}_styles`)?.querySelectorAll(".token") || [])].map((one) => one.textContent.trim());
      const body = { prompt: value(`${kind}_prompt`), negative_prompt: value(`${kind}_neg_prompt`), styles };
      try {
        const answer = await fetch("internal/token-count", {
          method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
        });
        if (!answer.ok) return;
        const told = await answer.json();
        say(`${kind}_prompt`, told.prompt);
        say(`${kind}_neg_prompt`, told.negative_prompt);
      } catch (error) { /* offline: the counts stay as they are */ }
    }, 400);
  }
  fastsd.count = count;

  function say(id, told) {
    const place = el(id);
    if (!place) return;
    let sign = place.querySelector(":scope > .tokens");
    if (!sign) {
      sign = document.createElement("span");
      sign.className = "tokens";
      sign.title = "Tokens, and how many the model reads at once";
      place.append(sign);
    }
    sign.textContent = told ? `${told.tokens}/${told.room}` : "";
  }

  document.addEventListener("input", (event) => {
    if (event.target.closest?.(".prompt textarea")) count(kindOf(event.target));
  });

  // ---------------------------------------------------------------- dropped pictures, pasted texts

  const dropped = {}; // kind -> the text of a picture

  /* For the arrow button: a dropped picture's text, the settings in the prompt, else those of the last picture. */
  fastsd.infotext = (kind) => {
    const told = dropped[kind];
    delete dropped[kind];
    if (told !== undefined) return told;
    const prompt = el(`${kind}_prompt`).querySelector("textarea").value;
    if (/\bSteps: \d/.test(prompt)) return prompt;
    return (!prompt.trim() && localStorage.getItem(`fastsd.${kind}.infotext`)) || prompt;
  };

  fastsd.pasteText = (kind, text) => {
    dropped[kind] = text;
    el(`${kind}_paste`).click();
  };

  async function pictureIn(transfer) {
    const file = [...transfer.files][0];
    if (file) return file;
    const address = transfer.getData("text/uri-list") || "";
    if (!address || new URL(address, location.href).origin !== location.origin) return null;
    return (await fetch(address)).blob();
  }

  async function takeSettings(kind, transfer) {
    const file = await pictureIn(transfer);
    if (!file) return;
    if (file.type.startsWith("text/")) return fastsd.pasteText(kind, await file.text());
    if (!file.type.startsWith("image/")) return fastsd.say("That is no picture.");
    const read = new FileReader();
    read.readAsDataURL(file);
    await new Promise((done) => (read.onload = done));
    const answer = await fetch("sdapi/v1/png-info", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ image: read.result }),
    });
    const told = await answer.json();
    if (!answer.ok) return fastsd.say(told.detail || "That picture cannot be read.");
    if (!told.info) return fastsd.say("That picture does not say how it was made.");
    fastsd.pasteText(kind, told.info);
  }

  const isPicture = (transfer) => transfer && [...transfer.types].some((type) => type === "Files" || type === "text/uri-list");

  document.addEventListener("dragover", (event) => {
    const row = event.target.closest?.(".prompts");
    if (!row || !isPicture(event.dataTransfer)) return;
    event.preventDefault();
    row.classList.add("drop-here");
  });
  document.addEventListener("dragleave", (event) => event.target.closest?.(".prompts")?.classList.remove("drop-here"));
  document.addEventListener("drop", (event) => {
    const row = event.target.closest?.(".prompts");
    if (!row || !isPicture(event.dataTransfer)) return;
    event.preventDefault();
    event.stopPropagation();
    row.classList.remove("drop-here");
    takeSettings(kindOf(row.querySelector("textarea")), event.dataTransfer).catch((error) => fastsd.say(String(error.message)));
  }, true);
})();
