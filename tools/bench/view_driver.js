// What a user does with the page, and how long each step takes until the frame behind it is painted.

const wait = async (what) => { while (!what()) await new Promise((done) => setTimeout(done, 5)); };
const frame = () => new Promise((done) => requestAnimationFrame(done));
const painted = async () => { await frame(); await new Promise((done) => setTimeout(done, 0)); };
const $ = (css) => document.querySelector(css);
const steps = {};
const timed = async (name, act) => {
  await painted();
  const start = performance.now();
  await act();
  await painted();
  steps[name] = performance.now() - start;
};
const all = (id) => async () => {
  $(id).click();
  await wait(() => document.body.classList.contains("busy"));
  await wait(() => !document.body.classList.contains("busy"));
};

await wait(() => document.body.dataset.ready);
await painted();
steps.load = performance.now();
await timed("expand", all("#expand"));
const pane = $(".pane:last-child"), gaps = [];
for (let last = await frame(), i = 0; i < 60; i++) {
  pane.dispatchEvent(new WheelEvent("wheel", { deltaX: 0, deltaY: 60, bubbles: true, cancelable: true }));
  const now = await frame();
  gaps.push(now - last);
  last = now;
}
gaps.sort((a, b) => a - b);
steps.pan = gaps[30];
steps.pan_slow = gaps[57];
await timed("search", async () => {
  $("#search").value = "relu";
  $("#search").dispatchEvent(new Event("input"));
});
await timed("pick", async () => {
  $("#found .hit").click();
  await wait(() => !$("#details").hidden);
});
await timed("collapse", all("#collapse"));
const label = document.querySelector(".pane:last-child .group > .op text"), shown = label.textContent;
const toggle = async () => {
  const was = label.textContent;
  label.parentElement.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  await wait(() => label.textContent !== was);
};
await timed("open", toggle);
await timed("close", toggle);
if (label.textContent !== shown) throw new Error("the module is not as it was");
console.log(`fluency ${JSON.stringify(steps)} end`);
