// Plays all scenes in step. Each sprite holds the panels side by side and the frames from top to bottom.
const scenes = [...document.querySelectorAll(".scene")].map((scene) => {
  const image = scene.querySelector("img");
  const canvases = [...scene.querySelectorAll("canvas")];
  const size = { w: +scene.dataset.width, h: +scene.dataset.height, n: +scene.dataset.frames };
  const draw = (frame) => canvases.forEach((canvas, panel) =>
    canvas.getContext("2d").drawImage(image, panel * size.w, (frame % size.n) * size.h, size.w, size.h, 0, 0, size.w, size.h));
  return { image, draw, n: size.n };
});
const slider = document.querySelector("#frame"), button = document.querySelector("#play"), counter = document.querySelector("#count");
if (slider) {
  const last = +slider.max;
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches, rest = 0;
  const show = (frame) => { slider.value = frame; counter.textContent = `frame ${frame + 1} of ${last + 1}`; scenes.forEach((s) => s.draw(frame)); };
  const state = () => { button.textContent = playing ? "Pause" : "Play"; };
  button.onclick = () => { playing = !playing; state(); };
  slider.oninput = () => { playing = false; state(); show(+slider.value); };
  setInterval(() => { // the last frame stays for a moment: it is where differences are largest
    if (!playing) return;
    if (+slider.value === last && rest++ < 4) return;
    rest = 0; show((+slider.value + 1) % (last + 1));
  }, 220);
  Promise.all(scenes.map((s) => s.image.decode())).then(() => { state(); show(last); });
}
