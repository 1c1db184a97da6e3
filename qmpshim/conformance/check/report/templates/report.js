"use strict";
(() => {
  const findings = [...document.querySelectorAll(".finding")];
  const form = document.querySelector(".filter");
  if (form) {
    form.hidden = false;
    const told = form.querySelector("output");
    const filter = () => {
      const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const one of findings) {
        const text = one.textContent.toLowerCase();
        const hit =
          (!form.state.value || one.dataset.state === form.state.value) &&
          (!form.verdict.value || one.dataset.verdict === form.verdict.value) &&
          (!form.build.value || one.dataset.builds.split("\n").includes(form.build.value)) &&
          words.every((word) => text.includes(word));
        one.hidden = !hit;
        shown += hit;
      }
      told.textContent = `${shown} of ${findings.length}`;
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();
  }
  for (const stepper of document.querySelectorAll(".stepper")) {
    stepper.hidden = false;
    const range = stepper.querySelector("input");
    const steps = [...stepper.parentElement.querySelectorAll(".step")];
    const show = () => {
      const at = Number(range.value);
      const stepping = at < steps.length;
      steps.forEach((step, index) => {
        step.classList.toggle("future", index >= at);
        step.classList.toggle("now", stepping && index === at - 1);
      });
      stepper.querySelector("output").textContent = `step ${at} of ${steps.length}`;
    };
    range.addEventListener("input", show);
    for (const button of stepper.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        range.value = Number(range.value) + Number(button.dataset.move);
        show();
      });
    }
    show();
  }
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const details = target && target.querySelector("details");
    if (details) {
      target.hidden = false;
      details.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
})();
