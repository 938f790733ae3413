// A tile that is pressed says which job it stands for, and stays marked.
element.addEventListener("click", (event) => {
  const tile = event.target.closest("[data-job]");
  if (!tile) return;
  element.querySelectorAll(".tile.chosen").forEach((one) => one.classList.remove("chosen"));
  tile.classList.add("chosen");
  trigger("click", { job: tile.dataset.job });
});
