"use strict";
// The page computes as mess.evaluate does: the first gate whose image confidence reaches its threshold takes the image.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const percent = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;
const COLOUR = { blue: "#0072B2", orange: "#D55E00", green: "#009E73", grey: "#888888", pink: "#CC79A7" };
const FINAL = data.exits.length - 1;

function unpacked(text, kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new kind(bytes.buffer);
}

for (const table of Object.values(data.tables)) {
  table.truth = unpacked(table.truth, Int32Array);
  for (const name of ["intersection", "predicted"]) table[name] = table[name].map((t) => unpacked(t, Int32Array));
  table.confidence = table.confidence.map((t) => unpacked(t, Float64Array));
}

/** What exits and gates give on a table: mean IoU, IoU of classes, mean cost, images leaving at each exit. */
function evaluated(table, exits) {
  const classes = data.classes.length, gates = exits.length - 1;
  const inter = new Float64Array(classes), union = new Float64Array(classes), truth = new Float64Array(classes);
  const leaving = exits.map(() => 0);
  for (let i = 0; i < table.images; i++) {
    let k = 0;
    while (k < gates) {
      const gate = exits[k];
      if (table.confidence[gate.row][gate.pixel * table.images + i] >= gate.image) break;
      k++;
    }
    leaving[k]++;
    const row = exits[k].row;
    for (let c = 0; c < classes; c++) {
      const at = i * classes + c, both = table.intersection[row][at];
      inter[c] += both;
      truth[c] += table.truth[at];
      union[c] += table.predicted[row][at] + table.truth[at] - both;
    }
  }
  const iou = Array.from(truth, (t, c) => (t > 0 ? inter[c] / union[c] : NaN));
  const present = iou.filter((value) => !Number.isNaN(value));
  let spent = 0, total = 0;
  exits.forEach((exit, k) => {
    spent += table.costs.head[exit.row] + (k < gates ? table.costs.policy[exit.row] : 0);
    total += leaving[k] * (table.costs.backbone[exit.row] + spent);
  });
  const accuracy = present.reduce((sum, value) => sum + value, 0) / present.length;
  return { accuracy, iou, cost: total / table.images, leaving };
}

/** A configuration with the rows of the tables and the indices of its thresholds. */
function resolved(configuration) {
  return configuration.exits.map((entry) => ({
    name: entry.exit,
    row: data.exits.indexOf(entry.exit),
    pixel: entry.pixel_threshold === null ? 0 : data.pixelThresholds.indexOf(entry.pixel_threshold),
    image: entry.image_threshold,
  }));
}

const state = { configuration: 0, split: Object.keys(data.tables)[0], exits: [] };
const table = () => data.tables[state.split];

/** What does not depend on the thresholds: the original network and every configuration, once a split. */
const known = {};
function onSplit() {
  known[state.split] ??= { original: evaluated(table(), [{ name: "final", row: FINAL }]),
    points: data.configurations.map((configuration) => evaluated(table(), resolved(configuration))) };
  return known[state.split];
}
const original = () => onSplit().original;

function label(configuration) {
  const exits = configuration.exits.map((e) => (e.image_threshold === null ? e.exit
    : `${e.exit} (${e.pixel_threshold}, ${e.image_threshold.toFixed(4)})`));
  return `${configuration.name ? configuration.name + ": " : ""}${exits.join(" → ")}`;
}

function answer(found) {
  const fitting = table().singles.filter((single) => single.cost <= found.cost * (1 + 1e-12)); // sums are rounded
  if (!fitting.length) return "There is none: no exit alone costs so little.";
  const best = fitting.reduce((a, b) => (b.accuracy > a.accuracy ? b : a));
  const gain = 100 * (best.accuracy - found.accuracy);
  const compared = Math.abs(gain) < 0.005 ? "the same" : `${Math.abs(gain).toFixed(2)} points ${gain > 0 ? "more" : "less"}`;
  return `${gain >= 0.005 ? "Yes" : "No"}: the network cut off at ${best.exit} reaches ${percent(best.accuracy)} at ` +
    `${percent(best.cost / original().cost, 1)} of the cost, ${compared} (${state.split} split).`;
}

const LAYOUT = { margin: { l: 55, r: 15, t: 60, b: 50 }, font: { size: 12 }, hovermode: "closest",
  legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, plot_bgcolor: "#fff" };
const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false };

function drawTradeoff(found) {
  const scale = original().cost, points = onSplit().points;
  const trace = (name, pick, marker, mode = "markers") => {
    const chosen = data.configurations.map((c, i) => i).filter((i) => pick(data.configurations[i]));
    return { name, mode, type: "scatter", marker, line: { shape: "hv", color: marker.color },
      x: chosen.map((i) => points[i].cost / scale), y: chosen.map((i) => 100 * points[i].accuracy),
      customdata: chosen, text: chosen.map((i) => label(data.configurations[i])),
      hovertemplate: "%{text}<br>%{x:.1%} of the cost, %{y:.2f} % mean IoU<extra></extra>" };
  };
  // those on the front are drawn as its points, which can be chosen
  const singles = table().singles.filter((single) => !points.some((point) => point.cost === single.cost &&
    Math.abs(point.accuracy - single.accuracy) < 1e-12));
  Plotly.react("tradeoff", [
    { name: "one exit for all images", mode: "markers", type: "scatter", marker: { color: COLOUR.grey, size: 6 },
      x: singles.map((s) => s.cost / scale), y: singles.map((s) => 100 * s.accuracy), text: singles.map((s) => s.exit),
      hovertemplate: "%{text} alone<br>%{x:.1%}, %{y:.2f} %<extra></extra>" },
    trace("Pareto front", (c) => !c.name, { color: COLOUR.blue, size: 7 },
      state.split === Object.keys(data.tables)[0] ? "lines+markers" : "markers"),
    trace("searched for", (c) => c.name, { color: COLOUR.orange, size: 11, symbol: "diamond" }),
    { name: "the original", mode: "markers", type: "scatter", marker: { color: "#000", size: 11, symbol: "square" },
      x: [1], y: [100 * original().accuracy], hovertemplate: "the original network, %{y:.2f} %<extra></extra>" },
    { name: "now", mode: "markers", type: "scatter", marker: { color: COLOUR.pink, size: 16, symbol: "star",
      line: { color: "#000", width: 1 } }, x: [found.cost / scale], y: [100 * found.accuracy],
      hovertemplate: "these thresholds: %{x:.1%}, %{y:.2f} %<extra></extra>" },
  ], { ...LAYOUT, xaxis: { title: { text: `mean cost (${data.cost}), original = 100 %` },
    tickformat: ".0%" }, yaxis: { title: { text: "mean IoU (%)" } } }, OPTIONS);
}

function drawClasses(found) {
  const bars = (name, values, color) => ({ name, type: "bar", x: data.classes, y: values.map((v) => 100 * v),
    marker: { color }, hovertemplate: "%{x}: %{y:.2f} %<extra></extra>" });
  Plotly.react("classes", [bars("the original", original().iou, COLOUR.grey), bars("now", found.iou, COLOUR.blue)],
    { ...LAYOUT, barmode: "group", yaxis: { title: { text: "IoU (%)" } }, xaxis: { automargin: true } }, OPTIONS);
}

function drawWorkload() {
  const work = data.workload;
  Plotly.newPlot("workload", [
    { name: "share of the work done", mode: "lines", type: "scatter", line: { color: COLOUR.blue }, y: work.shares,
      text: work.layers, hovertemplate: "%{text}<br>%{y:.1%}<extra></extra>" },
    { name: "exit points", mode: "markers+text", type: "scatter", marker: { color: COLOUR.orange, size: 10 },
      x: work.points.map((p) => p.at), y: work.points.map((p) => p.share), text: work.points.map((p, i) => `${i}`),
      customdata: work.points.map((p) => p.name), textposition: "top left",
      hovertemplate: "exit point %{text}: %{customdata}<br>%{y:.1%}<extra></extra>" },
  ], { ...LAYOUT, xaxis: { title: { text: "module calls in order of completion" } },
    yaxis: { tickformat: ".0%", range: [0, 1.1], title: { text: `share of ${work.total.toPrecision(4)} ${work.unit}` } } },
  OPTIONS);
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawGates() {
  const rows = state.exits.map((exit, k) => {
    const isGate = k < state.exits.length - 1;
    const cell = (kind, most, step, value, shown) => {
      if (!isGate) return element("td", {}, "—");
      const out = element("output", {}, shown(exit));
      const slider = element("input", { type: "range", min: 0, max: most, step, "data-gate": k, "data-kind": kind,
        "aria-label": `${kind} threshold of ${exit.name}` });
      slider.value = value;
      slider.addEventListener("input", () => {
        exit[kind] = Number(slider.value);
        out.textContent = shown(exit);
        update();
      });
      return element("td", {}, out, slider);
    };
    return element("tr", {}, element("td", {}, exit.name),
      cell("pixel", data.pixelThresholds.length - 1, 1, exit.pixel, (e) => `${data.pixelThresholds[e.pixel]}`),
      cell("image", 1, 0.0005, exit.image, (e) => e.image.toFixed(4)),
      element("td", { class: "leaving" }));
  });
  document.querySelector("#gates tbody").replaceChildren(...rows);
}

function update() {
  const found = evaluated(table(), state.exits), base = original();
  byId("accuracy").textContent = percent(found.accuracy);
  byId("cost").textContent = percent(found.cost / base.cost, 1);
  byId("change").textContent = `${(100 * (found.accuracy - base.accuracy)).toFixed(2)} points`;
  byId("answer").textContent = answer(found);
  document.querySelectorAll("#gates .leaving").forEach((cell, k) => {
    cell.textContent = `${percent(found.leaving[k] / table().images, 1)} (${found.leaving[k]})`;
  });
  window.messReport = { ...found, split: state.split, exits: state.exits.map((e) => ({ ...e })) };
  drawTradeoff(found);
  drawClasses(found);
}

function choose(index) {
  state.configuration = index;
  state.exits = resolved(data.configurations[index]);
  byId("configuration").value = String(index);
  drawGates();
  update();
}

function drawSamples() {
  const figure = (source, caption, ...more) => element("figure", {},
    element("img", { src: source, alt: caption }), element("figcaption", {}, caption, ...more));
  const made = data.samples.map((sample) => {
    const rows = [element("div", { class: "row" }, figure(sample.picture, "image"), figure(sample.truth, "ground truth"))];
    for (const gate of sample.gates) {
      const row = element("div", { class: "row" }, figure(gate.labels, `prediction of ${gate.exit}`));
      if (gate.confidence) {
        const leaves = gate.value >= gate.imageThreshold;
        row.append(figure(gate.confidence, "confidence"), figure(gate.mask, "near label edges"),
          figure(gate.refined, data.isRefined ? "confidence, refined" : "confidence, not refined", element("br"),
            `${gate.value.toFixed(4)} of the pixels ≥ ${gate.pixelThreshold}: ` +
            `${leaves ? "≥" : "<"} ${gate.imageThreshold.toFixed(4)}, ${leaves ? "leaves here" : "goes on"}`,
            element("meter", { value: gate.value, min: 0, max: 1, "aria-label": "image confidence" })));
      }
      rows.push(row);
    }
    return element("article", { class: "sample" }, element("h3", {}, `${sample.kind}: ${sample.name}`), ...rows);
  });
  byId("samples").replaceChildren(...(made.length ? made : ["No images: no configuration has a gate, or the data set of the run is not at hand."]));
}

byId("title").textContent = data.title;
byId("facts").textContent = Object.entries(data.facts).map(([name, value]) =>
  `${name} ${typeof value === "number" ? Number(value.toPrecision(4)) : value}`).join(" · ");
byId("footer").textContent = `mess ${data.version}`;
data.configurations.forEach((c, i) => byId("configuration").append(element("option", { value: i }, label(c))));
Object.entries(data.tables).forEach(([split, t]) => byId("split").append(
  element("option", { value: split }, `${split} (${t.images} images)`)));
byId("configuration").addEventListener("change", (event) => choose(Number(event.target.value)));
byId("split").addEventListener("change", (event) => { state.split = event.target.value; update(); });
byId("reset").addEventListener("click", () => choose(state.configuration));
drawWorkload();
drawSamples();
choose(0);
byId("tradeoff").on("plotly_click", (event) => {
  const index = event.points[0].customdata;
  if (typeof index === "number") choose(index);
});
