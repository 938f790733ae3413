// What this browser keeps for itself: light or dark, and the fields that it begins with.
(() => {
  const read = (key, none) => { try { return JSON.parse(localStorage.getItem(key)) ?? none; } catch { return none; } };
  const write = (key, value) => {
    try {
      if (value === undefined) localStorage.removeItem(key);
      else localStorage.setItem(key, JSON.stringify(value));
      return true;
    } catch { return false; }  // a browser that keeps nothing, or is full
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = {
    chosen: () => read("fastsd.theme", "auto"),
    apply: () => {
      const chosen = theme.chosen();
      const dark = chosen === "dark" || (chosen === "auto" && system.matches);
      if (document.body) document.body.classList.toggle("dark", dark);
    },
    choose: (chosen) => { write("fastsd.theme", chosen); theme.apply(); },
  };
  const say = (button, words) => {
    const before = button.textContent;
    button.textContent = words;
    setTimeout(() => { button.textContent = before; }, 1500);
  };
  const fields = {
    keep: ([kind, names], now) => {
      const kept = Object.fromEntries(names.map((name, number) => [name, now[number]]));
      const well = write(`fastsd.fields.${kind}`, kept);
      say(document.querySelector(`#settings_keep_${kind}`), well ? "Kept" : "This browser keeps nothing");
    },
    forget: ([kind]) => {
      write(`fastsd.fields.${kind}`, undefined);
      say(document.querySelector(`#settings_forget_${kind}`), "Forgotten");
    },
    kept: ([kind, names], now) => {
      const kept = read(`fastsd.fields.${kind}`, {});
      return names.map((name, number) => (name in kept ? kept[name] : now[number]));
    },
  };
  window.fastsdTheme = theme;
  window.fastsdFields = fields;
  system.addEventListener("change", theme.apply);
  if (document.body) theme.apply();
  else document.addEventListener("DOMContentLoaded", theme.apply);
})();
