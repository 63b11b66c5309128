"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const narrow = () => window.innerWidth < 600;

// Figures

function themed(layout) {
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), linecolor: style("--line") };
  const axes = Object.keys(layout).filter(key => /^[xy]axis/.test(key));
  return {
    ...layout,
    ...Object.fromEntries(axes.map(key => [key, { ...layout[key], ...axis, automargin: true }])),
    shapes: (layout.shapes || []).map(shape => ({ ...shape, line: { ...shape.line, color: style("--soft") } })),
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style("--text"), family: "system-ui, sans-serif", size: narrow() ? 11 : 13 },
    height: layout.height || 420,
    margin: { l: 60, r: 20, t: 30, b: 50, ...layout.margin },
    legend: { orientation: "h", traceorder: "normal", yref: "container", y: 0, yanchor: "bottom" }, // never over the axis' own words
    hoverlabel: { bgcolor: "#ffffff", font: { color: "#1f2328" } },
  };
}

// On a phone panels stand below each other, long titles take two lines, neighbouring notes stand at two heights, and lines
// through all hyper-parameters scroll sideways.
function fitted(name, layout) {
  if (!narrow()) return layout;
  const fit = { ...layout, annotations: (layout.annotations || []).map((note, i) => ({ ...note, yshift: 11 * (i % 2) })) };
  const title = layout.xaxis && layout.xaxis.title && layout.xaxis.title.text || "";
  if (title.length > 30) {
    const middle = title.indexOf(" ", title.length / 2);
    fit.xaxis = { ...layout.xaxis, title: { text: title.slice(0, middle) + "<br>" + title.slice(middle + 1) } };
  }
  if (!layout.grid) return fit;
  const count = layout.grid.rows * layout.grid.columns;
  return { ...fit, grid: { ...layout.grid, rows: count, columns: 1 }, height: 300 * count };
}

const brushes = {};
function draw() {
  for (const [name, plot] of Object.entries(data.figures)) {
    const box = document.getElementById("plot-" + name);
    plot.data.forEach(trace => trace.colorbar && Object.assign(trace.colorbar, narrow()
      ? { orientation: "h", y: 1, yanchor: "bottom", thickness: 12, title: { ...trace.colorbar.title, side: "top" } }
      : { orientation: "v", y: 0.5, yanchor: "middle", thickness: 30, title: { ...trace.colorbar.title, side: "top" } }));
    plot.data.forEach(trace => [trace.error_x, trace.error_y].forEach(error => error && (error.color = style("--text"))));
    if (name === "parallel") {
      plot.data[0].labelfont = plot.data[0].tickfont = { color: style("--text") };
      plot.data[0].rangefont = { color: "rgba(0,0,0,0)" };
      box.firstChild || box.appendChild(document.createElement("div"));
      box.firstChild.style.minWidth = 110 * plot.data[0].dimensions.length + "px";
    }
    const where = name === "parallel" ? box.firstChild : box;
    const config = { displayModeBar: false, responsive: true };
    Plotly.react(where, plot.data, themed(fitted(name, plot.layout)), config).then(() => {
      if (name === "parallel" && !where.dataset.bound) {
        where.dataset.bound = "yes";
        where.on("plotly_restyle", () => brushed(where));
      }
    });
  }
}

function brushed(where) {
  const trace = where.data[0];
  const inside = (range, value) => (Array.isArray(range[0]) ? range : [range]).some(([a, b]) => value >= a && value <= b);
  const kept = trace.dimensions.filter(d => d.constraintrange && d.constraintrange.length);
  brushes.ids = kept.length
    ? new Set(data.figures.parallel.layout.meta.filter((_, i) => kept.every(d => inside(d.constraintrange, d.values[i]))))
    : null;
  show();
}

// Files that the page makes itself, so that it is whole without the folder it came from

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const quoted = value => value === null || value === undefined ? "" :
  /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
const csv = rows => rows.map(row => row.map(quoted).join(",")).join("\n") + "\n";

function plotted(name) {
  const plot = data.figures[name];
  if (name === "parallel") {
    const dims = plot.data[0].dimensions;
    return [["trial_id", ...dims.map(d => d.label)], ...plot.layout.meta.map((id, i) => [id, ...dims.map(d => d.values[i])])];
  }
  const rows = [["trace", "x", "y", "z", "text"]];
  for (const trace of plot.data) {
    if (trace.z) trace.y.forEach((y, i) => trace.x.forEach((x, j) => rows.push(["", x, y, trace.z[i][j], ""])));
    else trace.x.forEach((x, i) => x === null || rows.push([trace.name, x, trace.y[i], "", trace.text && trace.text[i]]));
  }
  return rows;
}

document.addEventListener("click", event => {
  const { save: kind, of: name, copy } = event.target.dataset;
  if (kind === "png") {
    const box = document.getElementById("plot-" + name);
    const where = name === "parallel" ? box.firstChild : box;
    Plotly.downloadImage(where, { format: "png", filename: name, scale: 2, width: 1000, height: where.offsetHeight });
  } else if (kind === "csv") {
    save(name + ".csv", csv(name === "trials" ? [data.columns, ...data.rows] : plotted(name)));
  } else if (copy !== undefined) {
    const command = event.target.parentNode.querySelector("code");
    const done = () => { event.target.textContent = "copied"; setTimeout(() => event.target.textContent = "copy", 1500); };
    const select = () => getSelection().selectAllChildren(command);
    navigator.clipboard ? navigator.clipboard.writeText(command.textContent).then(done, select) : select();
  }
});

// The table of trials

const MORE = 200, table = document.getElementById("trials");
let sorted = { column: data.columns.indexOf("val_loss"), up: true }, most = MORE;
const body = table && table.tBodies[0], filter = document.getElementById("filter");
const worded = data.columns.map((_, i) => data.rows.some(row => typeof row[i] === "string" && row[i])); // not numbers

const bare = id => id.toLowerCase().replace(/^t(?=\d{5})/, ""); // t00001 and, in runs before 0.1.0, 00001

function matcher(text) {
  const tests = text.split(/\s+/).filter(Boolean).map(word => {
    const found = word.match(/^([^<>=]+)(<=|>=|<|>|=)(.+)$/);
    const column = found && data.columns.indexOf(found[1]);
    if (!found || column < 0) return row => row.some(cell => String(cell ?? "").toLowerCase().includes(bare(word)));
    const [, , sign, asked] = found, number = Number(asked);
    return row => {
      const cell = row[column];
      if (cell === null) return false;
      if (sign === "=") return String(cell) === asked || bare(String(cell)) === bare(asked) || cell === number;
      return sign[0] === "<" ? cell < number || (sign === "<=" && cell === number)
                             : cell > number || (sign === ">=" && cell === number);
    };
  });
  return row => tests.every(test => test(row));
}

function show() {
  const matches = matcher(filter.value);
  const rows = data.rows.filter(row => (!brushes.ids || brushes.ids.has(row[0])) && matches(row));
  const { column, up } = sorted, sign = up ? 1 : -1;
  rows.sort((a, b) => {
    const [x, y] = [a[column], b[column]];
    if (x === y) return 0;
    if (x === null || x === "") return 1; // the unknown last, whichever way
    if (y === null || y === "") return -1;
    return sign * (x < y ? -1 : 1);
  });
  body.replaceChildren(...rows.slice(0, most).map(row => {
    const line = document.createElement("tr");
    row.forEach((cell, i) => {
      const box = line.insertCell();
      box.textContent = typeof cell === "number" && !Number.isInteger(cell) ? Number(cell.toPrecision(5)) : cell ?? "";
      box.className = data.columns[i] === "reason" ? "words" : worded[i] ? "left" : "";
    });
    return line;
  }));
  document.querySelectorAll("#trials th").forEach((head, i) => {
    head.className = worded[i] ? "left" : "";
    head.setAttribute("aria-sort", i !== column ? "none" : up ? "ascending" : "descending");
    head.firstChild.dataset.way = i !== column ? "" : up ? " ▲" : " ▼";
  });
  const brush = brushes.ids ? ", brushed above" : "";
  document.getElementById("count").textContent = `${rows.length} of ${data.rows.length} trials${brush}`;
  document.getElementById("more").hidden = rows.length <= most;
}

if (table) {
  document.querySelectorAll("#trials th button").forEach((button, i) => button.addEventListener("click", () => {
    sorted = { column: i, up: sorted.column === i ? !sorted.up : true };
    show();
  }));
  filter.addEventListener("input", show);
  try { // the filter and the order stay on the way back and after a reload
    const kept = JSON.parse(sessionStorage.getItem(location.pathname)) || {};
    filter.value = kept.filter || "";
    sorted = kept.sorted || sorted;
    addEventListener("pagehide", () => sessionStorage.setItem(location.pathname, JSON.stringify({ filter: filter.value, sorted })));
  } catch { /* a browser that keeps nothing */ }
  document.getElementById("more").addEventListener("click", () => { most += MORE; show(); });
  document.getElementById("clear").addEventListener("click", () => {
    filter.value = "";
    brushes.ids = null;
    const plot = data.figures.parallel;
    if (plot) {
      plot.data[0].dimensions.forEach(d => delete d.constraintrange);
      draw();
    }
    show();
  });
  show();
}
if (window.Plotly) {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("(max-width: 599px)").addEventListener("change", draw);
}
