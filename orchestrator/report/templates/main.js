// Builds the sections that have data, and draws them again when points, theme or paper change.

const BUILDERS = { compression: [compressionSection, "curves"], correlation: [correlationSection, "rho"], probes: [probeSection, "probes"], tokens: [tokenSection, "maps"],
  deletion: [deletionSection, "deletion"], rivals: [rivalsSection, "rivals"], knockout: [knockoutSection, "knockout"], routes: [routesSection, "routes"],
  replacing: [replacingSection, "replacing"], patching: [patchingSection, "patching"], lens: [lensSection, "lens"], attention: [attentionSection, "attention"] };

if (document.getElementById("answer")) answerSection();
for (const [id, [build, needs]] of Object.entries(BUILDERS)) {
  const host = document.getElementById(id);
  if (host && DATA.points.some((p) => (needs === "maps" ? p.maps.length : p[needs]))) build();
}
if (document.getElementById("trials")) trialSection();

const drawAll = () => sections.forEach((section) => section.draw());

const chooser = document.getElementById("points");
if (chooser) {
  for (const p of DATA.points) {
    const box = make("input", { type: "checkbox", id: `point-${slug(p.label)}`, checked: true, onchange: (event) => {
      if (event.target.checked) hiddenPoints.delete(p.label); else hiddenPoints.add(p.label);
      drawAll();
    } });
    chooser.append(make("label", { for: `point-${slug(p.label)}` }, box, p.label));
  }
}

const themes = ["auto", "light", "dark"];
const button = document.getElementById("theme");
button.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % 3];
  if (next === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = next;
  button.textContent = `Theme: ${next}`;
  drawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
const paper = (printing) => { if (state.printing !== printing) { state.printing = printing; drawAll(); } };
addEventListener("beforeprint", () => paper(true));
addEventListener("afterprint", () => paper(false));
matchMedia("print").addEventListener("change", (event) => paper(event.matches));

let wide = document.documentElement.clientWidth;
addEventListener("resize", () => {
  const now = document.documentElement.clientWidth;
  if (now !== wide && Math.min(now, wide) < 720) { wide = now; drawAll(); }
});

// A heading that is jumped to must not end below the bar of links, whose height depends on its contents.
const bar = document.querySelector("nav");
new ResizeObserver(() => {
  const sticky = getComputedStyle(bar).position === "sticky";
  document.documentElement.style.scrollPaddingTop = sticky ? `${bar.offsetHeight + 10}px` : "";
}).observe(bar);

for (const copy of document.querySelectorAll("button.copy")) {
  copy.addEventListener("click", async () => {
    const text = copy.parentElement.querySelector("code").textContent;
    const done = await navigator.clipboard.writeText(text).then(() => true, () => false);
    copy.textContent = done ? "copied" : "select and copy by hand";
  });
}
drawAll();
document.documentElement.dataset.ready = "yes";
