/* Generate, Interrupt and Skip mean the batch while the inner tab Batch is open. */
(() => {
  const MEANT = {
    img2img_generate: "img2img_batch_go",
    img2img_interrupt: "img2img_batch_interrupt",
    img2img_skip: "img2img_batch_skip",
  };
  const all = Object.keys(MEANT).map((id) => `#${id}`).join(", ");
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(all);
    const batch = document.getElementById("img2img_batch_tab-button");
    if (!button || batch?.ariaSelected !== "true") return;
    event.preventDefault();
    event.stopImmediatePropagation();
    document.getElementById(MEANT[button.id]).click();
  }, true);
})();
